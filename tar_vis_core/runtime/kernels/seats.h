// The threads of a step, each on a processor of its own, and no more of them than other programs leave processors.

#pragma once

#include <cstdint>

#if defined(_OPENMP) && defined(__linux__)
#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <vector>

namespace {

// What a thread that seats its team remembers.
struct Seating {
  cpu_set_t all;    // the processors where it may run
  int team;         // the threads that it may have
  double busy = 0;  // other threads of the machine that run or wait for a processor, about the mean of four looks

  void look(const char *load) {
    int running = 1;
    if (FILE *file = std::fopen(load, "r")) {
      if (std::fscanf(file, "%*f %*f %*f %d", &running) != 1) running = 1;
      std::fclose(file);
    }
    busy += (running - 1 - busy) / 4;
  }
};
thread_local Seating seating;

// Until free_thread the caller has as many threads as there are processors that others leave free, at least one and at
// most what it may have: a thread that waits for its turn holds up all others. They keep away from the processors where
// the others of the team are now, and one that shares a processor leaves it: a thread that wakes may be put beside the
// one that woke it, and both take turns until the load is balanced some ten milliseconds later. (The processor of a
// virtual machine that has slept for long does not count as idle.) `processors` is the machine's number of them: where
// the caller may not use all, it is not known where others run, and nothing is done. Returns the number of threads, 0 if
// nothing was done.
inline int seat_threads(int64_t processors) {
  seating.team = omp_get_max_threads();
  if (seating.team < 2 || sched_getaffinity(0, sizeof seating.all, &seating.all)) return 0;
  if (CPU_COUNT(&seating.all) != processors) return 0;
  const cpu_set_t all = seating.all;
  const int left = CPU_COUNT(&all) - static_cast<int>(seating.busy + 0.25);
  const int team = std::max(1, std::min(left, seating.team));
  omp_set_num_threads(team);
  if (team == 1) return 1;
  std::vector<int> seats(team, -1);
#pragma omp parallel
  {
    const int own = omp_get_thread_num();
    seats[own] = sched_getcpu();
#pragma omp barrier
#pragma omp single
    {
      cpu_set_t free = all;
      for (int &seat : seats) {  // the first one on a processor stays
        if (seat >= 0 && CPU_ISSET(seat, &free)) CPU_CLR(seat, &free);
        else seat = -1;
      }
      int next = 0;
      for (int &seat : seats) {
        if (seat >= 0) continue;
        while (!CPU_ISSET(next, &free)) ++next;
        seat = next++;
      }
    }
    cpu_set_t mine = all;
    for (int i = 0; i < team; ++i) {
      if (i != own) CPU_CLR(seats[i], &mine);
    }
    sched_setaffinity(0, sizeof mine, &mine);
  }
  return team;
}

// The caller has all its threads again, and may run where it could before; the others stay where they are seated. `load`
// is /proc/loadavg, looked at now for the next time: when an image comes, its source and its other readers run as well.
inline void free_thread(const char *load) {
  sched_setaffinity(0, sizeof seating.all, &seating.all);
  omp_set_num_threads(seating.team);
  seating.look(load);
}

// The caller's helpers end, and are started anew by its next parallel region. While a program has more threads in teams
// than the machine has processors, none of them spins as it waits, whoever they belong to.
inline void end_helpers() { omp_pause_resource(omp_pause_soft, omp_get_initial_device()); }

}  // namespace

#else

inline int seat_threads(int64_t) { return 0; }
inline void free_thread(const char *) {}
inline void end_helpers() {}

#endif
