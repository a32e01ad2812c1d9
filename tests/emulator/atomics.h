// Atomic operations: fibers take turns, so plain updates are atomic. In which order they come is up
// to the shuffled schedule, which shows results that depend on it.
#pragma once

#include <type_traits>

namespace dlv3p::emulator {

// The operand takes the type of the memory, as in CUDA's overloads.
template <class T>
using Operand = std::common_type_t<T>;

template <class T, class Update>
T update(T* address, Update&& next) {
  const T old = *address;
  *address = next(old);
  return old;
}

}  // namespace dlv3p::emulator

template <class T>
T atomicAdd(T* address, dlv3p::emulator::Operand<T> value) {
  return dlv3p::emulator::update(address, [=](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomicMax(T* address, dlv3p::emulator::Operand<T> value) {
  static_assert(std::is_integral_v<T>, "CUDA has it for integers alone");
  return dlv3p::emulator::update(address, [=](T old) { return old < value ? value : old; });
}
template <class T>
T atomicMin(T* address, dlv3p::emulator::Operand<T> value) {
  static_assert(std::is_integral_v<T>, "CUDA has it for integers alone");
  return dlv3p::emulator::update(address, [=](T old) { return value < old ? value : old; });
}
template <class T>
T atomicExch(T* address, dlv3p::emulator::Operand<T> value) {
  return dlv3p::emulator::update(address, [=](T) { return value; });
}
template <class T>
T atomicCAS(T* address, dlv3p::emulator::Operand<T> expected, dlv3p::emulator::Operand<T> value) {
  static_assert(std::is_integral_v<T>, "CUDA has it for integers alone");
  return dlv3p::emulator::update(address, [=](T old) { return old == expected ? value : old; });
}

inline void __threadfence() {}
inline void __threadfence_block() {}
