/* The disk of the fault harness, preloaded into a process. disk.py gives the orders and reads the log.
 *
 * Every call by which a process changes files below the root is handled here, one at a time over all threads and
 * processes, so the log has the calls in the order in which they took effect. They are passed on by syscall(2), which
 * needs no symbol to be resolved, whatever runs before the constructor. All other calls are passed on untouched.
 *
 * Calls inside the C library itself are not seen here (fopen, mkstemp). The strace test detects any such call.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <linux/fs.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

_Static_assert(sizeof(off_t) == 8, "the calls with 64 in their name are the same calls");

#define EXPORT __attribute__((visibility("default")))
#define SECOND 1000000000LL

/* In the order of NAMES in disk.py. */
enum name { CREATE, TRUNCATE, WRITE, FALLOCATE, FSYNC, RENAME, LINK, SYMLINK, UNLINK, MKDIR, RMDIR, CHMOD };

/* The same layout as _Orders in disk.py. */
struct orders {
    uint64_t kill_at, kill_after;
    uint64_t fail_at, fail_error, fail_lasting, fail_only;
    uint64_t slow_ns, slow_only;
    uint64_t clock_at;
    int64_t clock_step_ns, clock_offset_ns;
    char lie[256];
};

/* The control file, mapped by every process on this disk. */
struct control {
    pthread_mutex_t mutex;
    uint32_t ready;
    uint32_t lives;
    uint64_t sequence; /* counts over all lives; names the snapshots */
    struct orders orders;
    char root[PATH_MAX], log[PATH_MAX], snapshots[PATH_MAX];
};

/* Shared by a process and its forked children. */
struct life {
    uint32_t number;
    uint64_t calls;
};

struct call {
    enum name name;
    uint64_t ordinal;
    bool kill_after;
    char path[PATH_MAX], to[PATH_MAX];
};

static struct control *disk; /* NULL: not attached */
static struct life *life;

static void die(const char *what) {
    dprintf(2, "disk of the fault harness: %s: %s\n", what, strerror(errno));
    abort();
}

/* -- the clock ---------------------------------------------------------------------------------------------------- */

/* The C library's own functions: with syscall(2), the clock would be slow for everyone. */
static int (*true_clock_gettime)(clockid_t, struct timespec *);
static int (*true_gettimeofday)(struct timeval *, void *);

static int read_clock(clockid_t clock, struct timespec *now) {
    if (!true_clock_gettime) *(void **)&true_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    return true_clock_gettime(clock, now);
}

static int64_t offset(void) {
    return disk ? __atomic_load_n(&disk->orders.clock_offset_ns, __ATOMIC_RELAXED) : 0;
}

static void add_offset(struct timespec *now, int64_t by) {
    int64_t total = now->tv_sec * SECOND + now->tv_nsec + by;
    if (total < 0) total = 0;
    now->tv_sec = total / SECOND;
    now->tv_nsec = total % SECOND;
}

EXPORT int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = read_clock(clock, now);
    int64_t by;
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) && (by = offset()) != 0)
        add_offset(now, by);
    return result;
}

EXPORT int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    if (!true_gettimeofday) *(void **)&true_gettimeofday = dlsym(RTLD_NEXT, "gettimeofday");
    int result = true_gettimeofday(now, zone);
    int64_t by;
    if (result == 0 && (by = offset()) != 0) {
        struct timespec exact = {now->tv_sec, now->tv_usec * 1000};
        add_offset(&exact, by);
        now->tv_sec = exact.tv_sec;
        now->tv_usec = exact.tv_nsec / 1000;
    }
    return result;
}

EXPORT time_t time(time_t *into) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (into) *into = now.tv_sec;
    return now.tv_sec;
}

/* -- the control file --------------------------------------------------------------------------------------------- */

static void lock(struct control *control) {
    int error = pthread_mutex_lock(&control->mutex);
    /* The owner was killed in the middle. It left a complete log and a counter. */
    if (error == EOWNERDEAD) error = pthread_mutex_consistent(&control->mutex);
    if (error) {
        errno = error;
        die("lock");
    }
}

static void unlock(struct control *control) { pthread_mutex_unlock(&control->mutex); }

static struct control *map_control(const char *path, int flags) {
    long fd = syscall(SYS_openat, AT_FDCWD, path, flags | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0) return NULL;
    if ((flags & O_CREAT) && syscall(SYS_ftruncate, fd, sizeof(struct control)) < 0) return NULL;
    void *mapped = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    int error = errno;
    close(fd);
    errno = error;
    return mapped == MAP_FAILED ? NULL : mapped;
}

static bool put(char *into, const char *path) { return (size_t)snprintf(into, PATH_MAX, "%s", path) < PATH_MAX; }

/* For disk.py. All paths are absolute, and the root's is resolved. Return NULL and set errno on failure. */
EXPORT struct control *a0_disk_create(const char *path, const char *root, const char *log, const char *snapshots) {
    struct control *control = map_control(path, O_CREAT | O_EXCL);
    if (!control) return NULL;
    if (!put(control->root, root) || !put(control->log, log) || !put(control->snapshots, snapshots)) {
        errno = ENAMETOOLONG;
        return NULL;
    }
    pthread_mutexattr_t kind;
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&control->mutex, &kind);
    pthread_mutexattr_destroy(&kind);
    control->ready = 1;
    return control;
}

EXPORT struct orders *a0_disk_orders(struct control *control) { return &control->orders; }
EXPORT void a0_disk_close(struct control *control) { munmap(control, sizeof *control); }
EXPORT void a0_disk_lock(struct control *control) { lock(control); }
EXPORT void a0_disk_unlock(struct control *control) { unlock(control); }

/* Begin a new life of this process on the disk of this control file. Return its number or a negative errno. */
EXPORT int a0_disk_attach(const char *path) {
    struct control *control = map_control(path, 0);
    if (!control) return -errno;
    if (!control->ready) return -EINVAL;
    struct life *own = mmap(NULL, sizeof *own, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (own == MAP_FAILED) return -errno;
    lock(control);
    own->number = ++control->lives;
    unlock(control);
    /* Keep the previous mappings: another thread may be in a call. */
    life = own;
    __atomic_store_n(&disk, control, __ATOMIC_RELEASE);
    return (int)own->number;
}

__attribute__((constructor)) static void begin_attached(void) {
    const char *path = getenv("A0_DISK");
    if (path) {
        int number = a0_disk_attach(path);
        if (number < 0) {
            errno = -number;
            die(path);
        }
    }
    /* A program that this process starts by exec is not on this disk. */
    Dl_info self;
    const char *preload = getenv("LD_PRELOAD");
    if (preload && dladdr((void *)begin_attached, &self) && strcmp(preload, self.dli_fname) == 0) unsetenv("LD_PRELOAD");
    unsetenv("A0_DISK");
}

/* -- which files -------------------------------------------------------------------------------------------------- */

static bool is_below(const char *path) {
    size_t length = strlen(disk->root);
    return strncmp(path, disk->root, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

static bool name_of(int fd, char *into) {
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, into, PATH_MAX - 1);
    if (length < 0) return false;
    into[length] = '\0';
    return true;
}

static bool fd_below(int fd, char *into) {
    int error = errno;
    bool below = disk && name_of(fd, into) && is_below(into);
    errno = error;
    return below;
}

/* Store the absolute path of *path* in *into*. Only its last name may be a link. */
static bool resolve(int at, const char *path, char *into) {
    char text[PATH_MAX];
    if (path[0] == '/') {
        if (!put(text, path)) return false;
    } else {
        char base[PATH_MAX];
        if (at == AT_FDCWD ? !getcwd(base, sizeof base) : !name_of(at, base)) return false;
        if ((size_t)snprintf(text, sizeof text, "%s/%s", base, path) >= sizeof text) return false;
    }
    size_t length = strlen(text);
    while (length > 1 && text[length - 1] == '/') text[--length] = '\0';
    char *slash = strrchr(text, '/');
    const char *last = slash + 1;
    bool whole = !*last || strcmp(last, ".") == 0 || strcmp(last, "..") == 0;
    if (!whole) *slash = '\0';
    long fd = syscall(SYS_openat, AT_FDCWD, *text ? text : "/", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    char folder[PATH_MAX];
    bool known = fd >= 0 && name_of((int)fd, folder);
    if (fd >= 0) close((int)fd);
    /* If the directory is missing, the call is going to fail: any spelling will do. */
    if (!known && !put(folder, text)) return false;
    if (whole) return put(into, folder);
    if (strcmp(folder, "/") == 0) folder[0] = '\0';
    return (size_t)snprintf(into, PATH_MAX, "%s/%s", folder, last) < PATH_MAX;
}

static bool path_below(int at, const char *path, char *into) {
    if (!disk || !path || !*path) return false;
    int error = errno;
    bool below = resolve(at, path, into) && is_below(into);
    errno = error;
    return below;
}

/* -- one call ----------------------------------------------------------------------------------------------------- */

static void append(const struct call *call, uint64_t sequence, char kind, int error, int64_t size, int killed) {
    char record[2 * PATH_MAX + 256];
    struct timespec now;
    read_clock(CLOCK_REALTIME, &now);
    int length = snprintf(record, sizeof record, "%llu%c%u%c%llu%c%ld%c%d%c%c%c%s%c%s%c%lld%c%d%c%lld%c%d%c",
                          (unsigned long long)sequence, 0, life->number, 0, (unsigned long long)call->ordinal, 0,
                          syscall(SYS_gettid), 0, call->name, 0, kind, 0, call->path, 0, call->to, 0,
                          (long long)(now.tv_sec * SECOND + now.tv_nsec), 0, error, 0, (long long)size, 0, killed, 0);
    long fd = syscall(SYS_openat, AT_FDCWD, disk->log, O_WRONLY | O_APPEND | O_CLOEXEC, 0);
    if (fd < 0 || syscall(SYS_write, fd, record, length) != length) die(disk->log);
    close((int)fd);
}

static void end_here(void) {
    /* Keep the lock: nothing else on this disk may change in between. The kernel passes the lock on. */
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

/* Take the disk for this call. False, with errno set: fail the call. True: make the call, then `finish`. */
static bool begin(struct call *call, enum name name) {
    int error = errno;
    call->name = name;
    call->kill_after = false;
    uint64_t bit = 1ULL << name;
    const struct orders *slowly = &disk->orders;
    uint64_t pause_ns = __atomic_load_n(&slowly->slow_ns, __ATOMIC_RELAXED);
    if (pause_ns && (slowly->slow_only & bit)) {
        struct timespec rest = {pause_ns / SECOND, pause_ns % SECOND};
        while (nanosleep(&rest, &rest) < 0 && errno == EINTR) {
        }
    }
    lock(disk);
    struct orders *orders = &disk->orders;
    call->ordinal = ++life->calls;
    if (orders->clock_at && call->ordinal >= orders->clock_at) {
        orders->clock_at = 0;
        __atomic_store_n(&orders->clock_offset_ns, orders->clock_step_ns, __ATOMIC_RELAXED);
    }
    if (orders->kill_at && call->ordinal >= orders->kill_at) {
        orders->kill_at = 0;
        if (!orders->kill_after) {
            append(call, ++disk->sequence, '?', 0, 0, 1);
            end_here();
        }
        call->kill_after = true;
    }
    if (orders->fail_at && call->ordinal >= orders->fail_at && (orders->fail_only & bit)) {
        if (!orders->fail_lasting) orders->fail_at = 0;
        int failure = (int)orders->fail_error;
        append(call, ++disk->sequence, '?', failure, 0, call->kill_after ? 2 : 0);
        if (call->kill_after) end_here();
        unlock(disk);
        errno = failure;
        return false;
    }
    errno = error;
    return true;
}

static long reopen(int fd, int flags) {
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    return syscall(SYS_openat, AT_FDCWD, link, flags | O_CLOEXEC, 0);
}

/* Change one byte on the disk behind the process's back. A second time does not restore the old byte. */
static void spoil(int fd, int64_t size) {
    unsigned char byte;
    long again = reopen(fd, O_RDWR);
    if (again < 0 || pread((int)again, &byte, 1, size / 2) != 1) die("a file to spoil");
    byte++;
    if (syscall(SYS_pwrite64, again, &byte, 1, size / 2) != 1 || syscall(SYS_fsync, again) < 0) die("spoil");
    close((int)again);
}

/* Keep what a power cut would leave of the file behind *fd*. */
static void keep(int fd, uint64_t sequence) {
    char place[PATH_MAX + 32];
    snprintf(place, sizeof place, "%s/%llu", disk->snapshots, (unsigned long long)sequence);
    long from = reopen(fd, O_RDONLY);
    long into = syscall(SYS_openat, AT_FDCWD, place, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (from < 0 || into < 0) die(place);
    long copied;
    while ((copied = syscall(SYS_sendfile, into, from, NULL, 1 << 30)) > 0) {
    }
    if (copied < 0) die(place);
    close((int)from);
    close((int)into);
}

/* Log the call that was made, release the disk and return *result*. *fd* is the file of an fsync. */
static long finish(struct call *call, long result, int64_t size, int fd) {
    int error = errno;
    uint64_t sequence = ++disk->sequence;
    char kind = '?';
    if (result >= 0 && call->name != UNLINK && call->name != RMDIR) {
        struct stat status;
        bool moved = call->name == RENAME || call->name == LINK;
        if ((call->name == FSYNC ? fstat(fd, &status) : lstat(moved ? call->to : call->path, &status)) == 0)
            kind = S_ISDIR(status.st_mode) ? 'd' : S_ISREG(status.st_mode) ? 'f' : S_ISLNK(status.st_mode) ? 'l' : '?';
        if (call->name == FSYNC && kind == 'f') {
            size = status.st_size;
            const char *relative = call->path + strlen(disk->root) + 1;
            if (size > 0 && *disk->orders.lie && fnmatch(disk->orders.lie, relative, 0) == 0) spoil(fd, size);
            keep(fd, sequence);
        }
    }
    append(call, sequence, kind, result < 0 ? error : 0, result < 0 ? 0 : size, call->kill_after ? 2 : 0);
    if (call->kill_after) end_here();
    unlock(disk);
    errno = error;
    return result;
}

/* Does not clear the whole paths: every write of the process passes through here. */
#define NEW_CALL     \
    struct call call; \
    call.path[0] = call.to[0] = '\0'

/* Pass the call on if it is not ours (*below* is false). Otherwise count it, log it, and treat it as ordered.
 * If *written*, the result of the call is the number of bytes written. */
#define CALL(below, named, written, ...)                      \
    do {                                                      \
        if (!(below)) return syscall(__VA_ARGS__);            \
        if (!begin(&call, named)) return -1;                  \
        long result = syscall(__VA_ARGS__);                   \
        return finish(&call, result, (written) ? result : 0, -1); \
    } while (0)

/* -- names -------------------------------------------------------------------------------------------------------- */

static int rename_at(int at, const char *path, int to_at, const char *to, unsigned flags) {
    NEW_CALL;
    if (!disk) return (int)syscall(SYS_renameat2, at, path, to_at, to, flags);
    bool below = path_below(at, path, call.path);
    below |= path_below(to_at, to, call.to);
    if (below && (flags & RENAME_EXCHANGE)) {
        errno = ENOSYS;
        die("an exchange of two names");
    }
    CALL(below, RENAME, false, SYS_renameat2, at, path, to_at, to, flags);
}

static int link_at(int at, const char *path, int to_at, const char *to, int flags) {
    NEW_CALL;
    if (!disk) return (int)syscall(SYS_linkat, at, path, to_at, to, flags);
    bool below = path_below(at, path, call.path);
    below |= path_below(to_at, to, call.to);
    CALL(below, LINK, false, SYS_linkat, at, path, to_at, to, flags);
}

static int symlink_at(const char *target, int at, const char *path) {
    NEW_CALL;
    bool below = path_below(at, path, call.path) && put(call.to, target);
    CALL(below, SYMLINK, false, SYS_symlinkat, target, at, path);
}

static int unlink_at(int at, const char *path, int flags) {
    NEW_CALL;
    enum name name = flags & AT_REMOVEDIR ? RMDIR : UNLINK;
    CALL(path_below(at, path, call.path), name, false, SYS_unlinkat, at, path, flags);
}

static int mkdir_at(int at, const char *path, mode_t mode) {
    NEW_CALL;
    CALL(path_below(at, path, call.path), MKDIR, false, SYS_mkdirat, at, path, mode);
}

static int open_at(int at, const char *path, int flags, mode_t mode) {
    NEW_CALL;
    if (!(flags & (O_CREAT | O_TRUNC)) || !path_below(at, path, call.path))
        return (int)syscall(SYS_openat, at, path, flags, mode);
    struct stat status;
    int error = errno;
    bool missing = lstat(call.path, &status) < 0;
    errno = error;
    bool creates = missing && (flags & O_CREAT);
    bool truncates = !missing && (flags & O_TRUNC) && !(flags & O_EXCL && flags & O_CREAT);
    CALL(creates || truncates, creates ? CREATE : TRUNCATE, false, SYS_openat, at, path, flags, mode);
}

#define MODE                                    \
    mode_t mode = 0;                            \
    if (flags & (O_CREAT | O_TMPFILE)) {        \
        va_list rest;                           \
        va_start(rest, flags);                  \
        mode = va_arg(rest, mode_t);            \
        va_end(rest);                           \
    }

EXPORT int rename(const char *path, const char *to) { return rename_at(AT_FDCWD, path, AT_FDCWD, to, 0); }
EXPORT int renameat(int at, const char *path, int to_at, const char *to) { return rename_at(at, path, to_at, to, 0); }
EXPORT int renameat2(int at, const char *path, int to_at, const char *to, unsigned flags) {
    return rename_at(at, path, to_at, to, flags);
}
EXPORT int link(const char *path, const char *to) { return link_at(AT_FDCWD, path, AT_FDCWD, to, 0); }
EXPORT int linkat(int at, const char *path, int to_at, const char *to, int flags) {
    return link_at(at, path, to_at, to, flags);
}
EXPORT int symlink(const char *target, const char *path) { return symlink_at(target, AT_FDCWD, path); }
EXPORT int symlinkat(const char *target, int at, const char *path) { return symlink_at(target, at, path); }
EXPORT int unlink(const char *path) { return unlink_at(AT_FDCWD, path, 0); }
EXPORT int unlinkat(int at, const char *path, int flags) { return unlink_at(at, path, flags); }
EXPORT int rmdir(const char *path) { return unlink_at(AT_FDCWD, path, AT_REMOVEDIR); }
EXPORT int remove(const char *path) {
    int error = errno;
    if (unlink(path) == 0) return 0;
    if (errno != EISDIR) return -1;
    errno = error;
    return rmdir(path);
}
EXPORT int mkdir(const char *path, mode_t mode) { return mkdir_at(AT_FDCWD, path, mode); }
EXPORT int mkdirat(int at, const char *path, mode_t mode) { return mkdir_at(at, path, mode); }
EXPORT int open(const char *path, int flags, ...) { MODE return open_at(AT_FDCWD, path, flags, mode); }
EXPORT int open64(const char *path, int flags, ...) { MODE return open_at(AT_FDCWD, path, flags, mode); }
EXPORT int openat(int at, const char *path, int flags, ...) { MODE return open_at(at, path, flags, mode); }
EXPORT int openat64(int at, const char *path, int flags, ...) { MODE return open_at(at, path, flags, mode); }
EXPORT int __open_2(const char *path, int flags) { return open_at(AT_FDCWD, path, flags, 0); }
EXPORT int __open64_2(const char *path, int flags) { return open_at(AT_FDCWD, path, flags, 0); }
EXPORT int __openat_2(int at, const char *path, int flags) { return open_at(at, path, flags, 0); }
EXPORT int __openat64_2(int at, const char *path, int flags) { return open_at(at, path, flags, 0); }
EXPORT int creat(const char *path, mode_t mode) {
    return open_at(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode);
}
EXPORT int creat64(const char *path, mode_t mode) { return creat(path, mode); }

/* -- bytes -------------------------------------------------------------------------------------------------------- */

EXPORT ssize_t write(int fd, const void *bytes, size_t count) {
    if (!disk) return syscall(SYS_write, fd, bytes, count);
    NEW_CALL;
    CALL(fd_below(fd, call.path), WRITE, true, SYS_write, fd, bytes, count);
}

EXPORT ssize_t pwrite64(int fd, const void *bytes, size_t count, off_t at) {
    NEW_CALL;
    CALL(fd_below(fd, call.path), WRITE, true, SYS_pwrite64, fd, bytes, count, at);
}
EXPORT ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) { return pwrite64(fd, bytes, count, at); }

EXPORT ssize_t writev(int fd, const struct iovec *parts, int count) {
    NEW_CALL;
    CALL(fd_below(fd, call.path), WRITE, true, SYS_writev, fd, parts, count);
}

EXPORT ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off_t at, int flags) {
    NEW_CALL;
    CALL(fd_below(fd, call.path), WRITE, true, SYS_pwritev2, fd, parts, count, at, 0L, flags);
}
EXPORT ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t at, int flags) {
    return pwritev64v2(fd, parts, count, at, flags);
}
EXPORT ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t at) {
    NEW_CALL;
    CALL(fd_below(fd, call.path), WRITE, true, SYS_pwritev, fd, parts, count, at, 0L);
}
EXPORT ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
    return pwritev64(fd, parts, count, at);
}

EXPORT ssize_t sendfile64(int fd, int from, off_t *at, size_t count) {
    NEW_CALL;
    CALL(fd_below(fd, call.path), WRITE, true, SYS_sendfile, fd, from, at, count);
}
EXPORT ssize_t sendfile(int fd, int from, off_t *at, size_t count) { return sendfile64(fd, from, at, count); }

EXPORT ssize_t copy_file_range(int from, off_t *from_at, int fd, off_t *at, size_t count, unsigned flags) {
    NEW_CALL;
    CALL(fd_below(fd, call.path), WRITE, true, SYS_copy_file_range, from, from_at, fd, at, count, flags);
}

EXPORT ssize_t splice(int from, off_t *from_at, int fd, off_t *at, size_t count, unsigned flags) {
    NEW_CALL;
    CALL(fd_below(fd, call.path), WRITE, true, SYS_splice, from, from_at, fd, at, count, flags);
}

EXPORT int ftruncate64(int fd, off_t size) {
    NEW_CALL;
    CALL(fd_below(fd, call.path), TRUNCATE, false, SYS_ftruncate, fd, size);
}
EXPORT int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

EXPORT int truncate64(const char *path, off_t size) {
    NEW_CALL;
    CALL(path_below(AT_FDCWD, path, call.path), TRUNCATE, false, SYS_truncate, path, size);
}
EXPORT int truncate(const char *path, off_t size) { return truncate64(path, size); }

EXPORT int fallocate64(int fd, int mode, off_t at, off_t size) {
    NEW_CALL;
    CALL(fd_below(fd, call.path), FALLOCATE, false, SYS_fallocate, fd, mode, at, size);
}
EXPORT int fallocate(int fd, int mode, off_t at, off_t size) { return fallocate64(fd, mode, at, size); }

/* Returns its error, and emulates with its own writes what the file system cannot do. */
EXPORT int posix_fallocate64(int fd, off_t at, off_t size) {
    int (*truly)(int, off_t, off_t);
    *(void **)&truly = dlsym(RTLD_NEXT, "posix_fallocate64");
    NEW_CALL;
    if (!fd_below(fd, call.path)) return truly(fd, at, size);
    int before = errno;
    if (!begin(&call, FALLOCATE)) {
        int failure = errno;
        errno = before;
        return failure;
    }
    int failure = truly(fd, at, size);
    errno = failure;
    finish(&call, failure ? -1 : 0, 0, -1);
    errno = before;
    return failure;
}
EXPORT int posix_fallocate(int fd, off_t at, off_t size) { return posix_fallocate64(fd, at, size); }

static int sync_fd(int fd, long number) {
    NEW_CALL;
    if (!fd_below(fd, call.path)) return (int)syscall(number, fd);
    if (!begin(&call, FSYNC)) return -1;
    return (int)finish(&call, syscall(number, fd), 0, fd);
}
EXPORT int fsync(int fd) { return sync_fd(fd, SYS_fsync); }
EXPORT int fdatasync(int fd) { return sync_fd(fd, SYS_fdatasync); }

/* -- modes -------------------------------------------------------------------------------------------------------- */

EXPORT int fchmodat(int at, const char *path, mode_t mode, int flags) {
    NEW_CALL;
    if (flags) {
        int (*truly)(int, const char *, mode_t, int);
        *(void **)&truly = dlsym(RTLD_NEXT, "fchmodat");
        if (!path_below(at, path, call.path)) return truly(at, path, mode, flags);
        if (!begin(&call, CHMOD)) return -1;
        return (int)finish(&call, truly(at, path, mode, flags), 0, -1);
    }
    CALL(path_below(at, path, call.path), CHMOD, false, SYS_fchmodat, at, path, mode);
}
EXPORT int chmod(const char *path, mode_t mode) { return fchmodat(AT_FDCWD, path, mode, 0); }
EXPORT int fchmod(int fd, mode_t mode) {
    NEW_CALL;
    CALL(fd_below(fd, call.path), CHMOD, false, SYS_fchmod, fd, mode);
}
