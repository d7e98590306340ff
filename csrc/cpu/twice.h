// Two vectors in lockstep: the formulas of philox.h are long chains, and one alone leaves most of the processor idle.
#pragma once
#include "../arithmetic.h"

namespace fastdiff {
namespace FD_LEVEL {

template <class V>
struct Twice {
  V a, b;
};

#define FD_TWICE_OPERATOR(op)                                                                                 \
  template <class V>                                                                                          \
  FD_SIMD Twice<V> operator op(Twice<V> x, Twice<V> y) { return {x.a op y.a, x.b op y.b}; }                   \
  template <class V, class Scalar>                                                                            \
  FD_SIMD Twice<V> operator op(Twice<V> x, Scalar y) { return {x.a op y, x.b op y}; }
FD_TWICE_OPERATOR(+)
FD_TWICE_OPERATOR(-)
FD_TWICE_OPERATOR(*)
FD_TWICE_OPERATOR(&)
FD_TWICE_OPERATOR(^)
FD_TWICE_OPERATOR(<<)
FD_TWICE_OPERATOR(>>)
#undef FD_TWICE_OPERATOR

#define FD_TWICE_FUNCTION(name)                                                                               \
  template <class V>                                                                                          \
  FD_SIMD auto name(Twice<V> x) -> Twice<decltype(name(x.a))> { return {name(x.a), name(x.b)}; }
FD_TWICE_FUNCTION(as_float)
FD_TWICE_FUNCTION(as_uint)
FD_TWICE_FUNCTION(as_int)
FD_TWICE_FUNCTION(int_to_float)
FD_TWICE_FUNCTION(uint_to_float)
FD_TWICE_FUNCTION(sqrt)
#undef FD_TWICE_FUNCTION

template <class V>
FD_SIMD V first(Twice<V> v) { return v.a; }
template <class V>
FD_SIMD V second(Twice<V> v) { return v.b; }
FD_SIMD float first(float v) { return v; }
FD_SIMD float second(float v) { return v; }

template <class V, class Factor, class Summand>
FD_SIMD Twice<V> madd(Twice<V> x, Factor y, Summand z) {
  return {madd(x.a, first(y), first(z)), madd(x.b, second(y), second(z))};
}

FD_SIMD Twice<vfloat> select(Twice<vuint> bits, Twice<vfloat> if_set, Twice<vfloat> if_clear) {
  return {select(bits.a, if_set.a, if_clear.a), select(bits.b, if_set.b, if_clear.b)};
}

FD_SIMD void multiply(Twice<vwide> x, uint32_t y, Twice<vwide>& high, Twice<vwide>& low) {
  multiply(x.a, y, high.a, low.a);
  multiply(x.b, y, high.b, low.b);
}

}  // namespace FD_LEVEL
}  // namespace fastdiff
