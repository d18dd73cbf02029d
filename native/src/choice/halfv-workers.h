#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace halfv {

// Threads that share out the items of each(). Between two calls they yield for a moment, as the serial stretches are tens
// of microseconds, and then sleep, so that they take no time from the threads of ggml.
class worker_pool {
public:
    explicit worker_pool(int n_threads) {
        threads.reserve(std::max(n_threads, 1));
        try {
            for (int i = 1; i < n_threads; ++i) {
                threads.emplace_back([this] { serve(); });
            }
        } catch (const std::system_error &) {
            // fewer threads, same result
        }
    }

    worker_pool(const worker_pool &) = delete;

    ~worker_pool() {
        quit = true;
        advance();
        for (std::thread & t : threads) {
            t.join();
        }
    }

    // job(i) for i in [0, n). The first exception of a job is thrown here, once all threads are back; other items may be left out.
    template <class F> void each(int n, F && job) {
        if (threads.empty() || n < 2) {
            for (int i = 0; i < n; ++i) {
                job(i);
            }
            return;
        }
        ctx = &job;
        call = [](void * j, int i) { (*static_cast<typename std::remove_reference<F>::type *>(j))(i); };
        n_items = n;
        next = 0;
        busy = (int) threads.size();
        advance();
        work();
        wait(returned, [this] { return busy == 0; });
        if (error) {
            std::rethrow_exception(std::exchange(error, nullptr));
        }
    }

private:
    void work() {
        try {
            for (int i; (i = next.fetch_add(1)) < n_items;) {
                call(ctx, i);
            }
        } catch (...) {
            next = n_items;
            const std::lock_guard<std::mutex> lock(mutex);
            if (!error) { error = std::current_exception(); }
        }
    }

    void serve() {
        for (unsigned seen = 0;; ++seen) {
            wait(called, [&] { return epoch != seen; });
            if (quit) {
                return;
            }
            work();
            if (busy.fetch_sub(1) == 1) {
                const std::lock_guard<std::mutex> lock(mutex);
                returned.notify_one();
            }
        }
    }

    void advance() {
        const std::lock_guard<std::mutex> lock(mutex);
        epoch.fetch_add(1);
        called.notify_all();
    }

    template <class F> void wait(std::condition_variable & changed, F && done) {
        for (int i = 0; i < 100; ++i) {
            if (done()) {
                return;
            }
            std::this_thread::yield();
        }
        std::unique_lock<std::mutex> lock(mutex);
        changed.wait(lock, done);
    }

    void * ctx = nullptr;
    void (*call)(void *, int) = nullptr;
    int n_items = 0;
    std::atomic<int> next{ 0 }, busy{ 0 };
    std::atomic<unsigned> epoch{ 0 };
    std::atomic<bool> quit{ false };
    std::exception_ptr error;
    std::mutex mutex;
    std::condition_variable called, returned;
    std::vector<std::thread> threads;
};

} // namespace halfv
