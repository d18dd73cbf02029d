// Preloaded: memory is handed out full of NaN, as if others had used it before.
#include <errno.h>
#include <stddef.h>
#include <string.h>

void * __libc_malloc(size_t size);
void * __libc_memalign(size_t alignment, size_t size);

static void * poisoned(void * memory, size_t size) { return memory ? memset(memory, 0xff, size) : memory; }

void * malloc(size_t size) { return poisoned(__libc_malloc(size), size); }
void * memalign(size_t alignment, size_t size) { return poisoned(__libc_memalign(alignment, size), size); }
void * aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

int posix_memalign(void ** out, size_t alignment, size_t size) {
    void * memory = memalign(alignment, size);
    if (memory) { *out = memory; }
    return memory ? 0 : ENOMEM;
}
