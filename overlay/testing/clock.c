/* A faster clock for i2pd, preloaded into each router of the private I2P network.
 *
 * What i2pd reads as the date, and the waits whose length it states, run at the pace that a small shared file
 * holds; the pace may change at any time. What it reads as the monotonic clock, and timers set to a moment, are
 * left alone: boost.asio sets "fire now" as a moment, which must stay in the past.
 *
 * The routers also end when the process that started them does.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define SECOND INT64_C(1000000000)

/* No wait lasts longer than this, so that a changed pace is noticed; in true nanoseconds. */
#define LONGEST_WAIT (SECOND / 10)

/* i2p_clock.py writes it: at the true monotonic time `since` the date was `date`, in nanoseconds both, and from
 * then on a thousand nanoseconds bring it `pace` further. `check` is the complement of the three's XOR: a reader
 * that meets a half-written change, or bytes that are still zero, reads again. */
struct moment {
  int64_t since, date, pace, check;
};

static volatile const struct moment *shared;

static void *following(const char *name) { return dlsym(RTLD_NEXT, name); }

static int real_gettime(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = following("clock_gettime");
  return real(clock, now);
}

static int64_t nanoseconds(const struct timespec *time) { return time->tv_sec * SECOND + time->tv_nsec; }

static struct timespec timespec_of(int64_t time) {
  return (struct timespec){.tv_sec = time / SECOND, .tv_nsec = time % SECOND};
}

static int64_t monotonic(void) {
  struct timespec now;
  real_gettime(CLOCK_MONOTONIC, &now);
  return nanoseconds(&now);
}

static struct moment current(void) {
  struct moment now;
  do {
    now = (struct moment){shared->since, shared->date, shared->pace, shared->check};
  } while (~(now.since ^ now.date ^ now.pace) != now.check);
  return now;
}

static int64_t date(void) {
  struct moment last = current();
  return last.date + (int64_t)((__int128)(monotonic() - last.since) * last.pace / 1000);
}

/* How long to wait now, in true time, for a wait of so much of the routers' time. */
static int64_t slice(int64_t wait) {
  int64_t shorter = (int64_t)((__int128)wait * 1000 / current().pace);
  return shorter < LONGEST_WAIT ? shorter : LONGEST_WAIT;
}

__attribute__((constructor)) static void begin(void) {
  const char *parent = getenv("OVERLAY_KEEPER"), *path = getenv("OVERLAY_CLOCK");
  if (!parent || !path) abort();
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != atoi(parent)) _exit(1); /* it ended before it could be watched */
  int file = open(path, O_RDONLY | O_CLOEXEC);
  void *mapped = mmap(NULL, sizeof(struct moment), PROT_READ, MAP_SHARED, file, 0);
  if (mapped == MAP_FAILED) abort();
  close(file);
  shared = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  if (!shared || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE)) return real_gettime(clock, now);
  *now = timespec_of(date());
  return 0;
}

int gettimeofday(struct timeval *now, void *zone) {
  (void)zone;
  struct timespec precise;
  clock_gettime(CLOCK_REALTIME, &precise);
  *now = (struct timeval){.tv_sec = precise.tv_sec, .tv_usec = precise.tv_nsec / 1000};
  return 0;
}

time_t time(time_t *also) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (also) *also = now.tv_sec;
  return now.tv_sec;
}

/* boost.asio waits so for its next timer; woken early it looks at the date and waits again. */
int timerfd_settime(int timer, int flags, const struct itimerspec *set, struct itimerspec *old) {
  static int (*real)(int, int, const struct itimerspec *, struct itimerspec *);
  if (!real) real = following("timerfd_settime");
  struct itimerspec scaled = *set;
  int64_t wait = nanoseconds(&set->it_value);
  if (!flags && wait) scaled.it_value = timespec_of(slice(wait) + 1); /* 0 would disarm it */
  return real(timer, flags, &scaled, old);
}

/* std::condition_variable::wait_for. Woken early, its callers look at what they wait for and wait again. */
int pthread_cond_clockwait(pthread_cond_t *condition, pthread_mutex_t *mutex, clockid_t clock,
                           const struct timespec *until) {
  static int (*real)(pthread_cond_t *, pthread_mutex_t *, clockid_t, const struct timespec *);
  if (!real) real = following("pthread_cond_clockwait");
  if (clock != CLOCK_MONOTONIC) return real(condition, mutex, clock, until);
  int64_t now = monotonic(), wait = nanoseconds(until) - now;
  struct timespec sooner = timespec_of(wait > 0 ? now + slice(wait) : nanoseconds(until));
  return real(condition, mutex, clock, &sooner);
}

/* std::this_thread::sleep_for; always whole, in the routers' time. */
int nanosleep(const struct timespec *length, struct timespec *left) {
  static int (*real)(const struct timespec *, struct timespec *);
  if (!real) real = following("nanosleep");
  for (int64_t end = date() + nanoseconds(length), wait; (wait = end - date()) > 0;) {
    struct timespec part = timespec_of(slice(wait) + 1);
    if (real(&part, NULL)) {
      if (left) *left = timespec_of(wait);
      return -1; /* interrupted; errno is set */
    }
  }
  return 0;
}
