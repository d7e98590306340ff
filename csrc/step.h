// The per-element formulas of q_sample and reverse_step (DESIGN 5), shared by cpu/ and cuda/.
//
// Value is float, double, or on the host vfloat; Real the coefficients' type, float or double. Which terms exist is a
// bit set over RowColumn, uniform over a sample: a term whose bit is clear is not computed, its value may be anything.
#pragma once
#include "arithmetic.h"

namespace fastdiff {
namespace FD_SPACE {

// u / 127.5 - 1 of a byte: 2u - 255 is exact, so nothing cancels.
template <class Value>
FD_FN Value scale_byte(Value u) {
  return madd(u, 2.0f, Value{} - 255.0f) * (1.0f / 255.0f);
}

FD_FN double scale_byte(double u) { return (u + u - 255.0) / 255.0; }

// alpha x0 + sigma noise.
template <class Value, class Real>
FD_FN Value noised(Value x0, Value noise, Real alpha, Real sigma) {
  return madd(noise, sigma, x0 * alpha);
}

// One row of a plan.
template <class Real>
struct Row {
  Real at[kRowColumns];
};

FD_FN constexpr uint32_t column_bit(int column) { return 1u << column; }

template <class... Columns>
FD_FN constexpr uint32_t terms_of(Columns... columns) {
  return (column_bit(columns) | ...);
}

// The columns that are not 0.
template <class Real>
FD_FN uint32_t nonzero_terms(const Row<Real>& row) {
  uint32_t terms = 0;
  FD_UNROLL
  for (int column = 0; column < kRowColumns; ++column) terms |= uint32_t(row.at[column] != Real(0)) << column;
  return terms;
}

// What a row reads of each tensor: nothing where its terms hold none of these columns.
constexpr uint32_t kReadsX = terms_of(kPX, kCX, kQX);
constexpr uint32_t kReadsModel = terms_of(kPM, kCM, kQM);
constexpr uint32_t kReadsVariance = terms_of(kL1);
constexpr uint32_t kReadsExtra = terms_of(kG0, kGX, kGV);
constexpr uint32_t kReadsHistory = terms_of(kC1, kC2, kC3);

// The inputs of one element; m is the guided and scaled output of the network, v its raw variance.
template <class Value>
struct Element {
  Value x, m, v, extra, h0, h1, h2, noise;
};

// total + coefficient * value, or total where the term does not exist. AnyRow: a Row, or what has such an `at`.
template <class Value, class AnyRow>
FD_FN Value add_term(Value total, const AnyRow& row, uint32_t terms, int column, Value value) {
  return terms & column_bit(column) ? madd(value, row.at[column], total) : total;
}

// 0 of any type; there are others of some.
template <class Value>
FD_FN Value zero_like(const Value&) {
  return Value{};
}

template <class Value, class AnyRow>
FD_FN Value first_term(const AnyRow& row, uint32_t terms, int column, Value value) {
  return terms & column_bit(column) ? value * row.at[column] : zero_like(value);
}

// gain * (m_uncond + w (m_cond - m_uncond)).
template <class Value, class AnyRow, class Real>
FD_FN Value guide(Value uncond, Value cond, const AnyRow& row, uint32_t terms, Real gain) {
  return add_term(uncond, row, terms, kW, cond - uncond) * gain;
}

// clip(p_x x + p_m m, bound) shrink, what x0 is where there is no g_0 extra.
template <class Value, class AnyRow, class Bound, class Real>
FD_FN Value clipped_x0(Value x, Value m, const AnyRow& row, uint32_t terms, Bound bound, Real shrink) {
  return clip(add_term(first_term(row, terms, kPX, x), row, terms, kPM, m), bound) * shrink;
}

// clip(p_x x + p_m m, bound) shrink + g_0 extra.
template <class Value, class Real>
FD_FN Value estimate_x0(const Element<Value>& e, const Row<Real>& row, uint32_t terms, Value bound, Real shrink) {
  return add_term(clipped_x0(e.x, e.m, row, terms, bound, shrink), row, terms, kG0, e.extra);
}

// c_x x + c_0 x0.
template <class Value, class AnyRow>
FD_FN Value first_terms(Value x, Value x0, const AnyRow& row, uint32_t terms) {
  return add_term(first_term(row, terms, kCX, x), row, terms, kC0, x0);
}

// Whether the row's deviation is not 1.
FD_FN bool deviates(uint32_t terms) { return terms & terms_of(kL0, kL1); }

// s = exp((l_0 + l_1 v) / 2).
template <class Value, class AnyRow>
FD_FN Value deviation(Value v, const AnyRow& row, uint32_t terms) {
  return exp(add_term(Value{} + row.at[kL0], row, terms, kL1, v) * 0.5f);
}

// c_x x + c_0 x0 + c_m m + c_1 h0 + c_2 h1 + c_3 h2 + (g_x + g_v s^2) extra + std s noise, s = exp((l_0 + l_1 v) / 2).
template <class Value, class Real>
FD_FN Value next_state(const Element<Value>& e, Value x0, const Row<Real>& row, uint32_t terms) {
  Value next = add_term(first_terms(e.x, x0, row, terms), row, terms, kCM, e.m);
  next = add_term(next, row, terms, kC1, e.h0);
  next = add_term(next, row, terms, kC2, e.h1);
  next = add_term(next, row, terms, kC3, e.h2);
  next = add_term(next, row, terms, kGX, e.extra);
  if (!deviates(terms)) return add_term(add_term(next, row, terms, kGV, e.extra), row, terms, kStd, e.noise);
  const Value s = deviation(e.v, row, terms);
  next = add_term(next, row, terms, kGV, s * s * e.extra);
  return add_term(next, row, terms, kStd, s * e.noise);
}

// q_x x + q_0 x0 + q_m m, for history.
template <class Value, class AnyRow>
FD_FN Value pushed(Value x, Value x0, Value m, const AnyRow& row, uint32_t terms) {
  return add_term(add_term(first_term(row, terms, kQX, x), row, terms, kQ0, x0), row, terms, kQM, m);
}

// mask * next + (1 - mask)(k_0 known + k_n known_noise).
template <class Value, class AnyRow>
FD_FN Value blend(Value next, Value mask, Value known, Value known_noise, const AnyRow& row, uint32_t terms) {
  const Value kept = add_term(first_term(row, terms, kK0, known), row, terms, kKN, known_noise);
  return madd(mask, next, (1.0f - mask) * kept);
}

}  // namespace FD_SPACE
}  // namespace fastdiff
