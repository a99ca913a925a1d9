/* For libraries that are preloaded: the next definition of a symbol, the C library's. */
#include <dlfcn.h>

#define REAL(type, name, ...)                                                                     \
    static type (*real)(__VA_ARGS__);                                                             \
    if (!real)                                                                                    \
    real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)
