# A toolchain file: Windows on x86-64, with Debian's mingw-w64 (g++-mingw-w64-x86-64-posix). `make cross` uses it.
set(CMAKE_SYSTEM_NAME Windows)
set(CMAKE_SYSTEM_PROCESSOR x86_64)
set(prefix x86_64-w64-mingw32)
set(CMAKE_C_COMPILER ${prefix}-gcc-posix)
set(CMAKE_CXX_COMPILER ${prefix}-g++-posix)
set(CMAKE_RC_COMPILER ${prefix}-windres)
set(CMAKE_FIND_ROOT_PATH /usr/${prefix})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)

# ggml asks threads not to be slowed down in a way that the headers of Debian 12 do not know yet
file(STRINGS /usr/${prefix}/include/processthreadsapi.h known REGEX THREAD_POWER_THROTTLING_STATE)
if (NOT known)
    string(JOIN " " CMAKE_C_FLAGS_INIT -DTHREAD_POWER_THROTTLING_STATE=PROCESS_POWER_THROTTLING_STATE
        -DTHREAD_POWER_THROTTLING_CURRENT_VERSION=1 -DTHREAD_POWER_THROTTLING_EXECUTION_SPEED=1)
endif()
