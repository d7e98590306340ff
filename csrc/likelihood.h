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

// u in the tanh approximation of the normal's Phi(u) = sigmoid(logit(u)). Source: Ho et al. 2020 by way of Page, 1977.
constexpr double kLogitSlope = 1.5957691216057307117, kLogitCube = 0.044715;
constexpr double kLogFloor = -27.631021115928547;        // ln 1e-12, where OpenAI's code floors a probability
constexpr double kLogRootTwoPi = 0.91893853320467274178, kOneOverRootTwoPi = 0.39894228040143267794;

template <class Value>
FD_FN Value logit_slope(Value u) {
  typedef typename Scalar<Value>::Is Real;
  return polynomial(u * u, Real(kLogitSlope), Real(3 * kLogitCube * kLogitSlope));
}

template <class Value>
FD_FN Value logit(Value u) {
  typedef typename Scalar<Value>::Is Real;
  return polynomial(u * u, Real(kLogitSlope), Real(kLogitCube * kLogitSlope)) * u;
}

// The density that is the mass below u, with by_scale = u by_shift.
template <class Value>
FD_FN BinMass<Value> tanh_tail(Value u) {
  typedef typename Scalar<Value>::Is Real;
  const Value h = logit(u), fade = fading(magnitude(h));
  const Value above = where(h < Real(0), Value{} + Real(1), fade) / (fade + Real(1));      // sigmoid(-h)
  const Value slope = above * logit_slope(u);
  return {where(h < Real(0), h, Value{}) - log_one_plus(fade), slope, slope * u};
}

// Between u = centre -+ half, centre <= 0. With h and l the logits of its ends, w = h - l and s the sigmoid, the mass is
// s(h) s(-l) (1 - e^-w); A = s(-h) / s(-l) and B = s(l) / s(h) make its derivatives A s'(u_h) - B s'(u_l), over 1 - e^-w.
template <class Value>
FD_FN BinMass<Value> tanh_bin(Value centre, Value half) {
  typedef typename Scalar<Value>::Is Real;
  const Value upper = centre + half, lower = centre - half, width = half + half;
  const Value h = logit(upper), l = logit(lower);
  const Value squares = madd(upper, upper, madd(upper, lower, lower * lower));
  const Value w = width * polynomial(squares, Real(kLogitSlope), Real(kLogitCube * kLogitSlope));
  const Value within = exp_complement(w), fade = fading(magnitude(h)), below = fading(-l), one = Value{} + Real(1);

  // Of a bin with nearly everything in it what is outside counts.
  const Value rest = fade / (fade + one) + below / (below + one);
  const auto whole = (h > Real(0)) & (rest < Real(0.5));
  const Value mass = where(whole, one - rest, within / ((fade + one) * (below + one)));
  const Value lost = where(whole, (one - mass) - rest, Value{});
  const Value log_mass = where(h < Real(0), h, Value{}) + log_of(mass) + lost / mass;

  const Value odds = where(h < Real(0), fade, one / fade);                        // e^h
  const Value A = (below + one) / (odds + one), B = (below + fading(w)) / (below + one);
  const Value s = below / (below + one), E = exp_minus_one(w);
  const Value narrow = (madd(s, Real(-2), one) - s * s * E) / madd(s, E, one);
  const Value difference = where(w < Real(1), narrow, (A - B) / within);    // (A - B) / (1 - e^-w)
  const Value change = B * width / within, slope = logit_slope(upper);
  const Real cube = Real(3 * kLogitCube * kLogitSlope);
  return {log_mass, madd(difference, slope, change * cube * (centre + centre)),
          madd(difference * upper, slope, change * polynomial(squares, Real(kLogitSlope), cube))};
}

template <class Value>
FD_FN BinMass<Value> floored(BinMass<Value> p) {
  typedef typename Scalar<Value>::Is Real;
  const auto below = p.log < Real(kLogFloor);
  return {where(below, Value{} + Real(kLogFloor), p.log), where(below, Value{}, p.by_shift),
          where(below, Value{}, p.by_scale)};
}

template <class Value>
FD_FN Value normal_density(Value u) {
  typedef typename Scalar<Value>::Is Real;
  return fading(u * u * Real(0.5)) * Real(kOneOverRootTwoPi);
}

// Phi(u) = phi(u) R(-u), R being Mills' ratio.
template <class Value>
FD_FN BinMass<Value> erf_tail(Value u) {
  typedef typename Scalar<Value>::Is Real;
  const Value ratio = mills_ratio(magnitude(u)), density = normal_density(u), above = density * ratio;
  const auto low = u < Real(0);
  const Value slope = where(low, Real(1) / ratio, density / (Real(1) - above));
  const Value far = madd(u * Real(-0.5), u, log_of(ratio) - Real(kLogRootTwoPi));
  return {where(low, far, log_one_plus(where(low, Value{}, -above))), slope, slope * u};
}

// A narrow bin: phi(centre) width (1 + excess), excess a series in K = (centre width / 2)^2 and D = (width / 2)^2, whose
// terms are Hermite polynomials; within 3e-8 for K, D <= 1/16 (in double see erf_bin).
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

// Between u = centre -+ half, centre <= 0: phi(upper) (R(-upper) - e^-k R(-lower)), or of a bin around 0 what is outside.
template <class Value>
FD_FN BinMass<Value> wide_bin(Value centre, Value half) {
  typedef typename Scalar<Value>::Is Real;
  const Value upper = centre + half, lower = centre - half, k = half * centre * Real(-2);
  const Value fade = fading(k), density = normal_density(upper);
  const Value near = mills_ratio(magnitude(upper)), far = mills_ratio(-lower) * fade;
  const auto around = upper > Real(0);
  const Value outside = where(around, density * (near + far), Value{});
  const Value rest = where(around, Value{} + Real(1), near - far);
  const Value tail = madd(upper * Real(-0.5), upper, log_of(rest) - Real(kLogRootTwoPi));
  const Value log_mass = where(around, log_one_plus(-outside), tail);
  const Value scale = where(around, density / (Real(1) - outside), Real(1) / rest);   // phi(upper) over the mass
  return {log_mass, scale * exp_complement(k), scale * (upper - lower * fade)};
}

// The series is for bins of less than half a deviation; double asks for narrower ones, where it has as many digits.
template <class Value>
FD_FN BinMass<Value> erf_bin(Value centre, Value half) {
  typedef typename Scalar<Value>::Is Real;
  const Real widest = sizeof(Real) == 8 ? Real(0.06) : Real(0.5);
  const Value width = half + half;
  const auto is_narrow = (width < widest) & (-centre * width < widest);
  BinMass<Value> narrow = {}, wide = {};
  if (is_needed(is_narrow)) narrow = narrow_bin(centre, half);
  if (is_needed(!is_narrow)) wide = wide_bin(centre, half);
  return {where(is_narrow, narrow.log, wide.log), where(is_narrow, narrow.by_shift, wide.by_shift),
          where(is_narrow, narrow.by_scale, wide.by_scale)};
}

// The mass of x0's bin of half width 1/255 under N(mean, e^log_variance), the outermost bins being unbounded.
template <class Value>
FD_FN BinMass<Value> bin_mass(Value x0, Value centred, Value inverse_std, bool exact) {
  typedef typename Scalar<Value>::Is Real;
  const Value centre = centred * inverse_std, half = inverse_std * Real(1.0 / 255);
  const auto first = x0 < Real(-0.999), last = x0 > Real(0.999);
  const auto mirrored = last | ((x0 >= Real(-0.999)) & (centre > Real(0)));
  const Value folded = where(mirrored, -centre, centre), end = folded + half;
  const auto outermost = first | last;
  BinMass<Value> tail = {}, bin = {};
  if (is_needed(outermost)) tail = exact ? erf_tail(end) : floored(tanh_tail(end));
  if (is_needed(!outermost)) bin = exact ? erf_bin(folded, half) : floored(tanh_bin(folded, half));
  const Value by_shift = where(outermost, tail.by_shift, bin.by_shift);
  return {where(outermost, tail.log, bin.log), where(mirrored, -by_shift, by_shift),
          where(outermost, tail.by_scale, bin.by_scale)};
}

// KL(N(true, e^l_q) || N(mean, e^log_variance)) = (e^d - 1 - d + difference^2 e^-log_variance) / 2, d = l_q - log_variance;
// or at t = 0 minus the logarithm of the decoder's mass.
template <class Value, class Real>
FD_FN VlbTerm<Value> vlb_term(const VlbElement<Value>& e, const VlbSetting<Value, Real>& setting) {
  const auto& at = setting.row.at;
  const Value raw_x0 = madd(e.m, at[kVlbPM], e.x_t * at[kVlbPX]), x0 = clip(raw_x0, setting.bound);
  const Value log_variance = madd(e.v, at[kVlbL1], Value{} + at[kVlbL0]);
  const Value truth = madd(e.x0, at[kVlbR0], e.x_t * at[kVlbRX]);
  const Value mean = setting.raw ? e.m : madd(x0, at[kVlbR0], e.x_t * at[kVlbRX]);
  const Value moved = setting.raw ? Value{} + Real(1)
                                  : where(x0 == raw_x0, Value{} + at[kVlbR0] * at[kVlbPM], Value{});   // of the mean by m
  Value value, by_mean, by_log_variance;
  if (setting.decoder) {
    const Value inverse_std = exp(log_variance * Real(-0.5));
    const BinMass<Value> p = bin_mass(e.x0, e.x0 - mean, inverse_std, setting.exact);
    value = -p.log, by_mean = p.by_shift * inverse_std, by_log_variance = p.by_scale * Real(0.5);
  } else {
    const Value difference = setting.raw ? truth - e.m : (e.x0 - x0) * at[kVlbR0];
    const Value d = at[kVlbLQ] - log_variance;
    Value beyond;
    const Value grown = exp_minus_one(d, beyond);
    const Value precise = difference * exp(-log_variance), square = difference * precise;
    value = (beyond + square) * Real(0.5), by_mean = -precise, by_log_variance = (grown + square) * Real(-0.5);
  }
  return {value, by_mean * moved, by_log_variance * at[kVlbL1]};
}

}  // namespace FD_SPACE
}  // namespace fastdiff
