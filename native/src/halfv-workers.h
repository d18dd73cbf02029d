#pragma once

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

namespace halfv {

// Threads that live as long as one cover() and share out the items of each(). They yield while they wait: the
// serial stretches between two calls are tens of microseconds.
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
        epoch.fetch_add(1);
        for (std::thread & t : threads) {
            t.join();
        }
    }

    // job(i) for i in [0, n); must not throw
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
        epoch.fetch_add(1);
        work();
        while (busy > 0) {
            std::this_thread::yield();
        }
    }

private:
    void work() {
        for (int i; (i = next.fetch_add(1)) < n_items;) {
            call(ctx, i);
        }
    }

    void serve() {
        for (unsigned seen = 0;; ++seen) {
            while (epoch == seen) {
                std::this_thread::yield();
            }
            if (quit) {
                return;
            }
            work();
            busy.fetch_sub(1);
        }
    }

    void * ctx = nullptr;
    void (*call)(void *, int) = nullptr;
    int n_items = 0;
    std::atomic<int> next{ 0 }, busy{ 0 };
    std::atomic<unsigned> epoch{ 0 };
    std::atomic<bool> quit{ false };
    std::vector<std::thread> threads;
};

} // namespace halfv
