/* A file system that cannot do all, for LD_PRELOAD: calls on files below $ODD_UNDER end with an error.

   ODD=CALL:ERROR,...   CALL is flock, fsync (of a file), folder (fsync of a folder), rename, replace (a rename onto
                        an existing name), mkdir, create, write or read
   ODD_FROM=N           only from the N-th such call on, counted from 0 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static atomic_long calls;

static void path_of(int fd, char *room) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = syscall(SYS_readlink, link, room, 4095);
    room[n > 0 ? n : 0] = 0;
}

static void whole(int folder, const char *path, char *room) {
    room[0] = 0;
    if (path[0] != '/') {
        if (folder == AT_FDCWD) { if (!getcwd(room, 2048)) return; }
        else path_of(folder, room);
        strcat(room, "/");
    }
    strncat(room, path, 4095);
}

static int fails(const char *call, const char *path) {
    const char *under = getenv("ODD_UNDER"), *errors = getenv("ODD"), *from = getenv("ODD_FROM");
    if (!under || !errors || strncmp(path, under, strlen(under)) != 0) return 0;
    size_t n = strlen(call);
    for (const char *each = errors; each; each = strchr(each, ',') ? strchr(each, ',') + 1 : 0)
        if (strncmp(each, call, n) == 0 && each[n] == ':') {
            if (from && atomic_fetch_add(&calls, 1) < atol(from)) return 0;
            errno = atoi(each + n + 1);
            return 1;
        }
    return 0;
}

static int fails_at(const char *call, int folder, const char *path) {
    char room[8192];
    whole(folder, path, room);
    return fails(call, room);
}

static int fails_on(const char *call, int fd) {
    char room[4096];
    path_of(fd, room);
    return fails(call, room);
}

int flock(int fd, int how) { return fails_on("flock", fd) ? -1 : syscall(SYS_flock, fd, how); }

int fsync(int fd) {
    struct stat state;
    const char *call = fstat(fd, &state) == 0 && S_ISDIR(state.st_mode) ? "folder" : "fsync";
    return fails_on(call, fd) ? -1 : syscall(SYS_fsync, fd);
}

ssize_t write(int fd, const void *bytes, size_t n) { return fails_on("write", fd) ? -1 : syscall(SYS_write, fd, bytes, n); }
ssize_t read(int fd, void *bytes, size_t n) { return fails_on("read", fd) ? -1 : syscall(SYS_read, fd, bytes, n); }

int renameat(int from_folder, const char *from, int folder, const char *to) {
    if (syscall(SYS_faccessat, folder, to, F_OK) == 0 && fails_at("replace", folder, to)) return -1;
    return fails_at("rename", folder, to) ? -1 : syscall(SYS_renameat, from_folder, from, folder, to);
}
int rename(const char *from, const char *to) { return renameat(AT_FDCWD, from, AT_FDCWD, to); }

int mkdirat(int folder, const char *path, mode_t mode) {
    return fails_at("mkdir", folder, path) ? -1 : syscall(SYS_mkdirat, folder, path, mode);
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

static int opened(int folder, const char *path, int flags, mode_t mode) {
    if ((flags & O_CREAT) && fails_at("create", folder, path)) return -1;
    return syscall(SYS_openat, folder, path, flags, mode);
}
#define MODE(last) va_list list; va_start(list, last); mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, int) : 0; va_end(list)
int open(const char *path, int flags, ...) { MODE(flags); return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags); return opened(AT_FDCWD, path, flags | O_LARGEFILE, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE(flags); return opened(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE(flags); return opened(folder, path, flags | O_LARGEFILE, mode); }
