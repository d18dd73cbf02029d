// The thread pool: every item once, exceptions of jobs arrive at the caller, and threads that have nothing to do sleep.

#include "halfv-workers.h"

#include "check.h"

#include <chrono>
#include <ctime>
#include <new>
#include <stdexcept>

static void test_every_item_once() {
    for (const int n_threads : { 0, 1, 2, 7 }) {
        halfv::worker_pool workers(n_threads);
        for (int n = 0; n < 200; n += 1 + n/3) {
            std::vector<std::atomic<int>> seen(n);
            workers.each(n, [&](int i) { ++seen[i]; });
            for (const auto & times : seen) { CHECK(times == 1); }
        }
    }
}

static void test_jobs_that_throw() {
    for (const int n_threads : { 1, 4 }) {
        halfv::worker_pool workers(n_threads);
        for (int round = 0; round < 50; ++round) {
            bool caught = false;
            try {
                workers.each(64, [&](int i) {
                    if (i % 8 == round % 8) { throw std::bad_alloc(); }
                });
            } catch (const std::bad_alloc &) {
                caught = true;
            }
            CHECK(caught);
            std::atomic<int> n_done{ 0 };
            workers.each(64, [&](int) { ++n_done; }); // it goes on as before
            CHECK(n_done == 64);
        }
    }
}

// processor time of the whole process while nothing is to be done; a thread that polls takes all of the wall time
static void test_threads_sleep() {
    halfv::worker_pool workers(4);
    workers.each(64, [](int) {});
    const std::clock_t before = std::clock();
    std::this_thread::sleep_for(std::chrono::milliseconds(400));
    CHECK(std::clock() - before < CLOCKS_PER_SEC/10);
}

// ... and while one item takes long, the others have come to an end
static void test_the_caller_sleeps() {
    halfv::worker_pool workers(4);
    const std::clock_t before = std::clock();
    workers.each(4, [](int i) {
        if (i == 0) { std::this_thread::sleep_for(std::chrono::milliseconds(400)); }
    });
    CHECK(std::clock() - before < CLOCKS_PER_SEC/10);
}

int main() {
    test_every_item_once();
    test_jobs_that_throw();
    test_threads_sleep();
    test_the_caller_sleeps();
    return n_failed > 0;
}
