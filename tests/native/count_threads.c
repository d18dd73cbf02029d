// Preloaded: counts the C++ threads that a process starts. Those of ggml and of Python start in another library.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

static int n_started;

int count_threads(void) { return n_started; }

int pthread_create(pthread_t * thread, const pthread_attr_t * attr, void * (*start)(void *), void * arg) {
    int (*real)(pthread_t *, const pthread_attr_t *, void * (*)(void *), void *);
    *(void **) &real = dlsym(RTLD_NEXT, "pthread_create");
    Dl_info info;
    void * address = *(void **) &start;
    if (dladdr(address, &info) && strstr(info.dli_fname, "libstdc++")) { __atomic_add_fetch(&n_started, 1, __ATOMIC_RELAXED); }
    return real(thread, attr, start, arg);
}
