/* Harm at chosen system calls, for LD_PRELOAD. Calls that change files below $FAULT_UNDER are counted from 0:
   creating open, write, truncate, fsync, rename, unlink, mkdir.

   FAULT=kill:N        SIGKILL right before call N
   FAULT=torn:N        call N writes half of its bytes, then SIGKILL
   FAULT=full:N        from call N on the disk is full: one more half write, then ENOSPC
   FAULT=signal:N:S    signal S right before call N
   FAULT_ONCE=FILE     only in the process that can make this file
   FAULT_TRACE=FILE    every call, with what it wrote
   FAULT_CLOCK=N:S     after call N the clock of the day is S seconds further on
   FAULT_NO_SEMAPHORES=1  shared memory is full: no semaphore can be made */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static atomic_long calls;
static atomic_int halved;


static int watched(const char *path) {
    const char *under = getenv("FAULT_UNDER");
    if (!under || !path) return 0;
    size_t n = strlen(under);
    return strncmp(path, under, n) == 0 && (path[n] == '/' || path[n] == 0);
}

static const char *name_of(int fd, char *room) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = syscall(SYS_readlink, link, room, 4095);
    room[n > 0 ? n : 0] = 0;
    return room;
}

static const char *absolute_at(int folder, const char *path, char *room) {
    if (path[0] == '/') return path;
    if (folder != AT_FDCWD) name_of(folder, room);
    else if (!getcwd(room, 2048)) return path;
    strcat(strcat(room, "/"), path);
    return room;
}

static int exists_at(int folder, const char *path) { return syscall(SYS_faccessat, folder, path, F_OK) == 0; }

static void trace(const char *what, const char *path, const char *other, long at, const void *bytes, long n) {
    const char *file = getenv("FAULT_TRACE");
    if (!file) return;
    char head[9000];
    int length = snprintf(head, sizeof head, "%s\t%s\t%s\t%ld\t%ld\n", what, path, other, at, n);
    int fd = syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_APPEND, 0600);
    syscall(SYS_write, fd, head, length);
    if (bytes) syscall(SYS_write, fd, bytes, n);
    syscall(SYS_close, fd);
}

static void die(void) { syscall(SYS_kill, getpid(), SIGKILL); }

/* What is to happen at this call: 0 nothing, 't' tear it, 'f' refuse it for want of space. */
static int due(const char *path) {
    const char *fault = getenv("FAULT");
    if (!watched(path)) return 0;
    long now = atomic_fetch_add(&calls, 1);
    if (!fault) return 0;
    const char *number = strchr(fault, ':') + 1;
    long at = atol(number);
    if (now < at || (now > at && fault[0] != 'f')) return 0;
    const char *once = getenv("FAULT_ONCE");
    if (once && syscall(SYS_openat, AT_FDCWD, once, O_CREAT | O_EXCL, 0600) < 0) return 0;
    if (fault[0] == 'k') die();
    if (fault[0] == 's') syscall(SYS_kill, getpid(), atoi(strchr(number, ':') + 1));
    return fault[0];
}

static int full(int what) {
    if (what != 'f') return 0;
    errno = ENOSPC;
    return 1;
}

static int opened(int folder, const char *path, int flags, mode_t mode) {
    char room[8192];
    const char *name = absolute_at(folder, path, room);
    int creating = (flags & O_CREAT) && watched(name) && !exists_at(folder, path);
    int emptying = (flags & O_TRUNC) && watched(name) && !creating;
    if ((creating || emptying) && full(due(name)) && creating) return -1;
    int fd = syscall(SYS_openat, folder, path, flags, mode);
    if (fd >= 0 && creating) trace("create", name, "", 0, 0, 0);
    if (fd >= 0 && emptying) trace("truncate", name, "", 0, 0, 0);
    return fd;
}

#define MODE(last) va_list list; va_start(list, last); mode_t mode = flags & O_CREAT ? va_arg(list, int) : 0; va_end(list)
int open(const char *path, int flags, ...) { MODE(flags); return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags); return opened(AT_FDCWD, path, flags | O_LARGEFILE, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE(flags); return opened(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE(flags); return opened(folder, path, flags | O_LARGEFILE, mode); }

ssize_t write(int fd, const void *bytes, size_t n) {
    char room[4096];
    if (!getenv("FAULT_UNDER") || !watched(name_of(fd, room))) return syscall(SYS_write, fd, bytes, n);
    int what = due(room);
    int half = what == 't' || (what == 'f' && n > 1 && !atomic_exchange(&halved, 1));
    if (!half && full(what)) return -1;
    ssize_t written = syscall(SYS_write, fd, bytes, half ? n / 2 : n);
    if (what == 't') die();
    if (written > 0) trace("write", room, "", syscall(SYS_lseek, fd, 0, SEEK_CUR) - written, bytes, written);
    return written;
}

static int synced(int fd, long call) {
    char room[4096];
    if (!getenv("FAULT_UNDER") || !watched(name_of(fd, room))) return syscall(call, fd);
    if (full(due(room))) return -1;
    int answer = syscall(call, fd);
    trace("fsync", room, "", 0, 0, 0);
    return answer;
}
int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

static int cut_fd(int fd, long length) {
    char room[4096];
    if (getenv("FAULT_UNDER") && watched(name_of(fd, room))) { due(room); trace("truncate", room, "", length, 0, 0); }
    return syscall(SYS_ftruncate, fd, length);
}
int ftruncate(int fd, off_t length) { return cut_fd(fd, length); }
int ftruncate64(int fd, off64_t length) { return cut_fd(fd, length); }

static int cut_path(const char *path, long length) {
    char room[8192];
    const char *name = absolute_at(AT_FDCWD, path, room);
    due(name);
    int answer = syscall(SYS_truncate, path, length);
    if (answer == 0 && watched(name)) trace("truncate", name, "", length, 0, 0);
    return answer;
}
int truncate(const char *path, off_t length) { return cut_path(path, length); }
int truncate64(const char *path, off64_t length) { return cut_path(path, length); }

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    char room[8192], other[8192];
    const char *old = absolute_at(from_folder, from, room), *new = absolute_at(to_folder, to, other);
    due(new);
    int answer = syscall(SYS_renameat, from_folder, from, to_folder, to);
    if (answer == 0 && watched(new)) trace("rename", old, new, 0, 0, 0);
    return answer;
}
int rename(const char *from, const char *to) { return renameat(AT_FDCWD, from, AT_FDCWD, to); }

int unlinkat(int folder, const char *path, int flags) {
    char room[8192];
    const char *name = absolute_at(folder, path, room);
    if (!watched(name) || !exists_at(folder, path)) return syscall(SYS_unlinkat, folder, path, flags);
    due(name);
    int answer = syscall(SYS_unlinkat, folder, path, flags);
    if (answer == 0) trace("unlink", name, "", 0, 0, 0);
    return answer;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }

int mkdirat(int folder, const char *path, mode_t mode) {
    char room[8192];
    const char *name = absolute_at(folder, path, room);
    if (!watched(name) || exists_at(folder, path)) return syscall(SYS_mkdirat, folder, path, mode);
    if (full(due(name))) return -1;
    int answer = syscall(SYS_mkdirat, folder, path, mode);
    if (answer == 0) trace("mkdir", name, "", 0, 0, 0);
    return answer;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

static long later(void) {
    const char *clock = getenv("FAULT_CLOCK");
    return clock && atomic_load(&calls) > atol(clock) ? atol(strchr(clock, ':') + 1) : 0;
}

int clock_gettime(clockid_t which, struct timespec *now) {
    int answer = syscall(SYS_clock_gettime, which, now);
    if (which == CLOCK_REALTIME) now->tv_sec += later();
    return answer;
}

int gettimeofday(struct timeval *now, void *zone) {
    int answer = syscall(SYS_gettimeofday, now, zone);
    now->tv_sec += later();
    return answer;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}

sem_t *sem_open(const char *name, int flags, ...) {
    static sem_t *(*real)(const char *, int, mode_t, unsigned);
    extern void *dlsym(void *, const char *);
    if (getenv("FAULT_NO_SEMAPHORES")) { errno = ENOSPC; return SEM_FAILED; }
    if (!real) real = dlsym((void *)-1L, "sem_open");
    va_list list;
    va_start(list, flags);
    mode_t mode = va_arg(list, int);
    unsigned value = va_arg(list, unsigned);
    va_end(list);
    return real(name, flags, mode, value);
}
