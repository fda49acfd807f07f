// Loaded into a program (LD_PRELOAD) to make one of its file operations fail: the FAULTS_AT-th call that changes something
// below the folder FAULTS_BELOW, counted from 1. FAULTS_KIND says how: "kill" ends the process as SIGKILL does, before the
// call; "full" lets this and every later call that needs room fail with ENOSPC; "broken" lets this one fail with EIO.
// At the end the number of calls is written to FAULTS_COUNT.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long calls;

// Whether a path, or that of an open file, lies below the folder.
static int below(int folder, const char *path) {
    const char *root = getenv("FAULTS_BELOW");
    char link[64], place[2 * PATH_MAX] = "";
    if (!root) return 0;
    if (path && path[0] == '/') return strncmp(path, root, strlen(root)) == 0;
    if (folder == AT_FDCWD) {
        if (!getcwd(place, PATH_MAX)) return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t n = readlink(link, place, PATH_MAX - 1);
        if (n < 0) return 0;
        place[n] = 0;
    }
    return strncmp(place, root, strlen(root)) == 0;
}

// Counts a call; an error number if it is to fail, else 0. `needs_room`: whether a full disk refuses it.
static int fault(int folder, const char *path, int needs_room) {
    int before = errno, counts = below(folder, path);
    errno = before;
    if (!counts) return 0;
    long call = atomic_fetch_add(&calls, 1) + 1;
    const char *at = getenv("FAULTS_AT"), *kind = getenv("FAULTS_KIND");
    if (!at || !kind || call < atol(at)) return 0;
    if (strcmp(kind, "full") == 0) return needs_room ? ENOSPC : 0;
    if (call != atol(at)) return 0;
    if (strcmp(kind, "kill") == 0) kill(getpid(), SIGKILL);
    return EIO;
}

__attribute__((destructor)) static void report(void) {
    const char *path = getenv("FAULTS_COUNT");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (file) {
        fprintf(file, "%ld", (long)calls);
        fclose(file);
    }
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define INTERCEPT(type, name, folder, path, needs_room, parameters, arguments)                                          \
    type name parameters {                                                                                             \
        int error = fault(folder, path, needs_room);                                                                   \
        if (error) return errno = error, (type)-1;                                                                     \
        return REAL(name) arguments;                                                                                   \
    }

INTERCEPT(ssize_t, write, fd, NULL, 1, (int fd, const void *bytes, size_t n), (fd, bytes, n))
INTERCEPT(ssize_t, writev, fd, NULL, 1, (int fd, const struct iovec *parts, int n), (fd, parts, n))
INTERCEPT(ssize_t, pwrite64, fd, NULL, 1, (int fd, const void *bytes, size_t n, off64_t at), (fd, bytes, n, at))
INTERCEPT(int, fsync, fd, NULL, 1, (int fd), (fd))
INTERCEPT(int, fdatasync, fd, NULL, 1, (int fd), (fd))
INTERCEPT(int, ftruncate64, fd, NULL, 0, (int fd, off64_t size), (fd, size))
INTERCEPT(int, rename, AT_FDCWD, to, 0, (const char *from, const char *to), (from, to))
INTERCEPT(int, renameat, folder, to, 0, (int from_folder, const char *from, int folder, const char *to),
          (from_folder, from, folder, to))
INTERCEPT(int, link, AT_FDCWD, to, 1, (const char *from, const char *to), (from, to))
INTERCEPT(int, unlink, AT_FDCWD, path, 0, (const char *path), (path))
INTERCEPT(int, unlinkat, folder, path, 0, (int folder, const char *path, int flags), (folder, path, flags))
INTERCEPT(int, rmdir, AT_FDCWD, path, 0, (const char *path), (path))
INTERCEPT(int, mkdir, AT_FDCWD, path, 1, (const char *path, mode_t mode), (path, mode))

// Only calls that create or cut a file change anything.
#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                       \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        mode_t mode = va_arg(more, mode_t);                                                                            \
        va_end(more);                                                                                                  \
        int error = flags & (O_CREAT | O_TRUNC) ? fault(AT_FDCWD, path, 1) : 0;                                        \
        if (error) return errno = error, -1;                                                                           \
        return REAL(name)(path, flags, mode);                                                                          \
    }
OPEN(open)
OPEN(open64)
