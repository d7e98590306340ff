// The per-element formulas of diffusion_loss and vlb_terms, shared by cpu/ and cuda/: values in nats, and derivatives.
//
// Value is float, double, or on the host vfloat; Real the coefficients' type, float or double.
#pragma once
#include "special.h"
#include "step.h"

namespace fastdiff {
namespace FD_SPACE {

// m - (a x0 + b noise).
template <class Value, class Real>
FD_FN Value residual(Value m, Value x0, Value noise, Real a, Real b) {
  return m - noised(x0, noise, a, b);
}

// One row of vlb_terms' table.
template <class Real>
struct VlbRow {
  Real at[kVlbColumns];
};

// What a sample's elements share. raw: the network's output is the mean itself; decoder: t = 0.
template <class Value, class Real>
struct VlbSetting {
  VlbRow<Real> row;
  Value bound;
  bool raw, decoder, exact;
};

// The inputs of an element; v is the raw variance.
template <class Value>
struct VlbElement {
  Value x0, x_t, m, v;
};

// A term and its derivatives in the network's two outputs.
template <class Value>
struct VlbTerm {
  Value value, by_m, by_v;
};

// ln P of a bin, and its derivatives as the bin moves up and as it widens: along u + s and u e^s of both its ends.
template <class Value>
struct BinMass {
  Value log, by_shift, by_scale;
};

// The tanh approximation of the normal's Phi(u) = 1 / (1 + e^-logit(u)). Source: Ho et al. 2020 by way of Page, 1977.
constexpr double kLogitSlope = 1.5957691216057307117, kLogitCube = 0.044715 * kLogitSlope;
constexpr double kRarest = 1e-12;                        // where OpenAI's code floors a probability
constexpr double kLogRootTwoPi = 0.91893853320467274178;
constexpr double kFarthest = 1e12;                       // deviations, of which a float has the cube

// A bin of half width `half` deviations around `centre`; the first one begins, the last one ends at infinity.
template <class Value, class Condition>
struct Bin {
  Value centre, half;
  Condition first, last, outermost;
};

// With h and l the logits of a bin's ends, a = e^-h, b = e^l and N = 1 - e^(l - h), where e^(l - h) = a b:
//
//     mass = N / ((1 + a) (1 + b)) = 1 / (1 + R), R = (a + b + 2 a b) / N
//
// of positive terms alone: every digit counts wherever the bin is. An end at infinity makes its a or b 0, and N 1.
template <class Value, class Condition>
FD_FN BinMass<Value> tanh_mass(const Bin<Value, Condition>& bin) {
  typedef typename Scalar<Value>::Is Real;
  const Real slope = kLogitSlope, slopes = 3 * kLogitCube, less = -kLogitSlope * kUnit, lesser = -kLogitCube * kUnit;
  const Value far = Value{} + Real(kFarthest), none = {}, one = none + Real(1);
  const Value c = limited(bin.centre, far), d = at_most(bin.half, far), squares = madd(c * c, Real(3), d * d);
  const Value middle = c * polynomial(madd(d * d, Real(3), c * c), less, lesser);     // -(h + l) / 2, in kUnit
  const Value width = d * polynomial(squares, less, lesser);                          // -(h - l) / 2
  const Value a = where(bin.last, none, raise(width + middle)), b = where(bin.first, none, raise(width - middle));
  const Value apart = where(bin.outermost, none - Real(1000), width + width), ab = raise(apart);
  const Value N = complement(-apart, ab), R = quotient(madd(ab, Real(2), a + b), N);

  const Value upper = c + d, lower = c - d, between = quotient(ab, N);
  const Value A = quotient(a, a + one) * polynomial(upper * upper, slope, slopes);
  const Value B = quotient(b, b + one) * polynomial(lower * lower, slope, slopes);
  const Value by_shift = madd(between * Real(4) * slopes, c * d, A - B);
  const Value by_scale = madd(between * d * Real(2), polynomial(squares, slope, slopes), A * upper - B * lower);
  const Real rarest = 1 / kRarest - 1;
  const auto is_rare = R > rarest;
  return {-log_one_plus(at_most(R, none + rarest)), where(is_rare, none, by_shift), where(is_rare, none, by_scale)};
}

// A narrow bin: phi(centre) width (1 + excess), excess a series in K = (centre width / 2)^2 and D = (width / 2)^2, whose
// terms are Hermite polynomials; within 3e-8 for K, D <= 1/16 (in double see erf_mass).
template <class Value>
FD_FN BinMass<Value> narrow_bin(Value centre, Value half) {
  typedef typename Scalar<Value>::Is Real;
  const Value D = half * half, K = centre * centre * D, K2 = K * K, KD = K * D, D2 = D * D;
  const Real second = Real(1.0 / 120), third = Real(1.0 / 5040);
  const Value quadratic = K2 - KD * Real(6) + D2 * Real(3);
  const Value cubic = K2 * K - K2 * D * Real(15) + K * D2 * Real(45) - D2 * D * Real(15);
  const Value excess = (K - D) * Real(1.0 / 6) + quadratic * second + cubic * third;
  const Value by_K = (K * Real(2) - D * Real(6)) * second + (K2 * Real(3) - KD * Real(30) + D2 * Real(45)) * third +
                     Real(1.0 / 6);
  const Value by_D = (D * Real(6) - K * Real(6)) * second - (K2 * Real(15) - KD * Real(90) + D2 * Real(45)) * third -
                     Real(1.0 / 6);
  const Value whole = excess + Real(1);
  const Value peak = madd(centre * Real(-0.5), centre, log_of(half + half) - Real(kLogRootTwoPi));
  const Value log_mass = peak + log_one_plus(excess);
  const Value by_shift = madd(centre * D, by_K / whole * Real(2), -centre);
  const Value by_scale = Real(1) - centre * centre + madd(K, by_K * Real(4), D * by_D * Real(2)) / whole;
  return {log_mass, by_shift, by_scale};
}

// Between u = centre -+ half, centre <= 0, or from -infinity on: phi(upper) (R(-upper) - e^-k R(-lower)), R being
// Mills' ratio; and where upper > 0 the logarithm is that of 1 less what is outside.
template <class Value, class Condition>
FD_FN BinMass<Value> wide_bin(const Bin<Value, Condition>& bin) {
  typedef typename Scalar<Value>::Is Real;
  const Value none = {}, one = none + Real(1), upper = bin.centre + bin.half, lower = bin.centre - bin.half;
  const Value k = where(bin.outermost, none + Real(1000), bin.centre * bin.half * Real(-2 * kUnit)), fade = raise(-k);
  const Value exponent = madd(upper * upper, Real(-0.5 * kUnit), none - Real(kLogRootTwoPi * kUnit));
  const Value density = raise(exponent);
  const Value near = mills_ratio(magnitude(upper)), far = mills_ratio(magnitude(lower)) * fade;
  const auto around = upper > Real(0);
  const Value outside = density * (near + far), rest = where(around, one - outside, near - far);
  const Value lost = (one - rest) - outside;         // by the first difference: over `rest` it is no more within an ulp
  const Value scale = where(around, density, one) * inverse_of(rest);                 // phi(upper) over the mass
  return {log_of(rest) + where(around, lost, exponent * Real(1 / kUnit)), scale * complement(k, fade),
          scale * (upper - lower * fade)};
}

// The series is for bins of less than half a deviation; double asks for narrower ones, where it has as many digits.
template <class Value, class Condition>
FD_FN BinMass<Value> erf_mass(const Bin<Value, Condition>& given) {
  typedef typename Scalar<Value>::Is Real;
  const Real widest = sizeof(Real) == 8 ? Real(0.03) : Real(0.25);
  Bin<Value, Condition> bin = given;
  bin.centre = where(bin.outermost, where(bin.last, -bin.centre, bin.centre), minus_magnitude(bin.centre));
  const Condition is_wide = (bin.half >= widest) | (bin.centre * bin.half <= -widest) | bin.outermost;
  BinMass<Value> narrow = {}, wide = {};
  if (is_needed(!is_wide)) narrow = narrow_bin(bin.centre, bin.half);
  if (is_needed(is_wide)) wide = wide_bin(bin);
  const Value by_shift = where(is_wide, wide.by_shift, narrow.by_shift);
  const Condition mirrored = given.last | ((given.centre > Real(0)) & !given.first);
  return {where(is_wide, wide.log, narrow.log), where(mirrored, -by_shift, by_shift),
          where(is_wide, wide.by_scale, narrow.by_scale)};
}

// The mass of x0's bin of half width 1/255 under N(mean, std^2), the outermost bins being unbounded. kExact: with erf.
template <bool kExact, class Value>
FD_FN BinMass<Value> bin_mass(Value x0, Value centred, Value inverse_std) {
  typedef typename Scalar<Value>::Is Real;
  typedef decltype(x0 < x0) Condition;
  const Condition first = x0 < Real(-0.999), last = x0 > Real(0.999), outermost = first | last;
  const Bin<Value, Condition> bin = {centred * inverse_std, inverse_std * Real(1.0 / 255), first, last, outermost};
  if constexpr (kExact) return erf_mass(bin);
  else return tanh_mass(bin);
}

// The estimate of x0 before its clip, and after.
template <class Value>
struct Estimate {
  Value raw, x0;
};

template <class Value, class Real>
FD_FN Estimate<Value> estimate_of(const VlbElement<Value>& e, const VlbSetting<Value, Real>& setting) {
  const auto& at = setting.row.at;
  const Value raw = madd(e.m, at[kVlbPM], e.x_t * at[kVlbPX]);
  return {raw, limited(raw, setting.bound)};
}

// The derivative of the mean by m.
template <class Value, class Real>
FD_FN Value moved_by_m(const Estimate<Value>& estimate, const VlbSetting<Value, Real>& setting) {
  const auto& at = setting.row.at;
  const Value usual = where(estimate.x0 == estimate.raw, Value{} + at[kVlbR0] * at[kVlbPM], Value{});
  return setting.raw ? Value{} + Real(1) : usual;
}

// Minus the logarithm of the decoder's mass, at t = 0.
template <bool kExact, class Value, class Real>
FD_FN VlbTerm<Value> decoder_term(const VlbElement<Value>& e, const VlbSetting<Value, Real>& setting) {
  const auto& at = setting.row.at;
  const Estimate<Value> estimate = estimate_of(e, setting);
  const Value inverse_std = exp_within(madd(e.v, at[kVlbL1] * Real(-0.5), Value{} + at[kVlbL0] * Real(-0.5)));
  const Value mean = setting.raw ? e.m : madd(estimate.x0, at[kVlbR0], e.x_t * at[kVlbRX]);
  const BinMass<Value> p = bin_mass<kExact>(e.x0, e.x0 - mean, inverse_std);
  return {-p.log, p.by_shift * inverse_std * moved_by_m(estimate, setting), p.by_scale * (Real(0.5) * at[kVlbL1])};
}

// KL(N(true, e^l_q) || N(mean, e^log_variance)) = (e^d - 1 - d + difference^2 e^-log_variance) / 2,
// d = l_q - log_variance.
template <class Value, class Real>
FD_FN VlbTerm<Value> divergence_term(const VlbElement<Value>& e, const VlbSetting<Value, Real>& setting) {
  const auto& at = setting.row.at;
  const Estimate<Value> estimate = estimate_of(e, setting);
  const Value log_variance = madd(e.v, at[kVlbL1], Value{} + at[kVlbL0]);
  const Value truth = madd(e.x0, at[kVlbR0], e.x_t * at[kVlbRX]);
  const Value difference = setting.raw ? truth - e.m : (e.x0 - estimate.x0) * at[kVlbR0];
  Value beyond;
  const Value grown = exp_minus_one(at[kVlbLQ] - log_variance, beyond);
  const Value precise = difference * exp(-log_variance), square = difference * precise;
  return {(beyond + square) * Real(0.5), -precise * moved_by_m(estimate, setting),
          (grown + square) * (Real(-0.5) * at[kVlbL1])};
}

// call(term), term(e, setting) being what the sample's elements have.
template <class Value, class Real, class Call>
FD_FN void with_term(const VlbSetting<Value, Real>& setting, const Call& call) {
  typedef const VlbElement<Value>& E;
  typedef const VlbSetting<Value, Real>& S;
  if (!setting.decoder) call([](E e, S s) { return divergence_term(e, s); });
  else if (setting.exact) call([](E e, S s) { return decoder_term<true>(e, s); });
  else call([](E e, S s) { return decoder_term<false>(e, s); });
}

}  // namespace FD_SPACE
}  // namespace fastdiff
