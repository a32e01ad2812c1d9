// Barriers, votes and shuffles under CUDA's names.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "block.h"

// The place of the call comes through default arguments, for error messages.
#define DLV3P_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(DLV3P_PLACE) {
  dlv3p::emulator::block_barrier(false, {"__syncthreads", file, line});
}
inline int __syncthreads_count(int predicate, DLV3P_PLACE) {
  return dlv3p::emulator::block_barrier(predicate != 0, {"__syncthreads_count", file, line});
}
inline int __syncthreads_or(int predicate, DLV3P_PLACE) {
  return dlv3p::emulator::block_barrier(predicate != 0, {"__syncthreads_or", file, line}) > 0;
}
inline int __syncthreads_and(int predicate, DLV3P_PLACE) {
  return dlv3p::emulator::block_barrier(predicate == 0, {"__syncthreads_and", file, line}) == 0;
}

namespace dlv3p::emulator {

constexpr unsigned kWholeWarp = 0xffffffffu;

inline void meet(void* const (&)[warpSize]) {}

struct Ballot {
  bool predicate;
  unsigned voters = 0;
  unsigned votes = 0;
};

inline void count_votes(void* const (&records)[warpSize]) {
  unsigned voters = 0, votes = 0;
  for (int lane = 0; lane < warpSize; ++lane) {
    if (!records[lane]) continue;
    voters |= 1u << lane;
    if (static_cast<Ballot*>(records[lane])->predicate) votes |= 1u << lane;
  }
  for (void* record : records) {
    if (!record) continue;
    static_cast<Ballot*>(record)->voters = voters;
    static_cast<Ballot*>(record)->votes = votes;
  }
}

inline Ballot vote(unsigned mask, int predicate, const Site& site) {
  Ballot ballot{predicate != 0};
  warp_operation(mask, &ballot, count_votes, site);
  return ballot;
}

// Where a lane reads; CUDA's rules, a lane that would leave its segment of `width` reads itself.
// (Only towards higher lanes for __shfl_xor_sync, as on hardware.)
struct Indexed {
  static int source(int lane, int index, int width) {
    return (lane & ~(width - 1)) + (index & (width - 1));
  }
};
struct Up {
  static int source(int lane, int delta, int width) {
    return lane - delta < (lane & ~(width - 1)) ? lane : lane - delta;
  }
};
struct Down {
  static int source(int lane, int delta, int width) {
    return lane + delta > (lane | (width - 1)) ? lane : lane + delta;
  }
};
struct Xor {
  static int source(int lane, int mask, int width) {
    return (lane ^ mask) > (lane | (width - 1)) ? lane : lane ^ mask;
  }
};

template <class T>
struct Shuffle {
  T value;
  int argument;
  int width;
  T result;
};

template <class T, class Rule>
void move_values(void* const (&records)[warpSize]) {
  for (int lane = 0; lane < warpSize; ++lane) {
    auto* to = static_cast<Shuffle<T>*>(records[lane]);
    if (!to) continue;
    const int source = Rule::source(lane, to->argument, to->width);
    const bool there = source >= 0 && source < warpSize && records[source];
    // On a GPU the value of a lane that takes no part is undefined.
    if (there) {
      to->result = static_cast<Shuffle<T>*>(records[source])->value;
    } else {
      std::memset(static_cast<void*>(&to->result), kPoisonByte, sizeof(T));
    }
  }
}

template <class Rule, class T>
T shuffle(unsigned mask, T value, int argument, int width, const Site& site) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8, "registers are shuffled");
  if (width < 1 || width > warpSize || (width & (width - 1)) != 0) {
    fail(std::string(site.call) + ": width must be a power of 2 up to 32, not " +
         std::to_string(width));
  }
  Shuffle<T> record{value, argument, width, value};
  warp_operation(mask, &record, move_values<T, Rule>, site);
  return record.result;
}

}  // namespace dlv3p::emulator

inline void __syncwarp(unsigned mask = dlv3p::emulator::kWholeWarp, DLV3P_PLACE) {
  int nothing = 0;
  dlv3p::emulator::warp_operation(mask, &nothing, dlv3p::emulator::meet,
                                  {"__syncwarp", file, line});
}
inline unsigned __ballot_sync(unsigned mask, int predicate, DLV3P_PLACE) {
  return dlv3p::emulator::vote(mask, predicate, {"__ballot_sync", file, line}).votes;
}
inline int __any_sync(unsigned mask, int predicate, DLV3P_PLACE) {
  return dlv3p::emulator::vote(mask, predicate, {"__any_sync", file, line}).votes != 0;
}
inline int __all_sync(unsigned mask, int predicate, DLV3P_PLACE) {
  const auto ballot = dlv3p::emulator::vote(mask, predicate, {"__all_sync", file, line});
  return ballot.votes == ballot.voters;
}
inline unsigned __activemask() { return dlv3p::emulator::lanes_alive(); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, DLV3P_PLACE) {
  return dlv3p::emulator::shuffle<dlv3p::emulator::Indexed>(mask, value, source, width,
                                                            {"__shfl_sync", file, line});
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, DLV3P_PLACE) {
  return dlv3p::emulator::shuffle<dlv3p::emulator::Up>(mask, value, static_cast<int>(delta), width,
                                                       {"__shfl_up_sync", file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, DLV3P_PLACE) {
  return dlv3p::emulator::shuffle<dlv3p::emulator::Down>(mask, value, static_cast<int>(delta),
                                                         width, {"__shfl_down_sync", file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize, DLV3P_PLACE) {
  return dlv3p::emulator::shuffle<dlv3p::emulator::Xor>(mask, value, lanes, width,
                                                        {"__shfl_xor_sync", file, line});
}

#undef DLV3P_PLACE
