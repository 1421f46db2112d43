// Functions of vectors of 16 floats.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <limits>

namespace cktk {

constexpr float kNever = -std::numeric_limits<float>::infinity();

enum Activation : int { kNone = 0, kRelu = 1, kGelu = 2, kGeluTanh = 3, kSilu = 4 };

// A mask of the first `count` lanes.
inline __mmask16 first(int64_t count) {
  return count >= 16 ? __mmask16(0xFFFF) : count <= 0 ? __mmask16(0) : __mmask16((1u << count) - 1);
}

// Of two operands `min` and `max` return the second one if any is NaN: what may be NaN stands there.

// exp(x) within 2 units of the last place; exp(-inf) is 0.
inline __m512 exponential(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-150.0f), _mm512_min_ps(_mm512_set1_ps(88.7f), x));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.0f / 5040);
#pragma GCC unroll 7
  for (const float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  return _mm512_scalef_ps(p, n);
}

inline __m512 sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(one, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

// The cumulative normal distribution, by Abramowitz and Stegun 7.1.26 (error below 1e-7).
inline __m512 normal_cdf(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
  const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(_mm512_set1_ps(0.3275911f), z, one));
  __m512 p = _mm512_set1_ps(1.061405429f);
  for (const float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f})
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(c));
  const __m512 square = _mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(z, z));
  const __m512 tail = _mm512_mul_ps(_mm512_mul_ps(p, t), _mm512_mul_ps(exponential(square), _mm512_set1_ps(0.5f)));
  return _mm512_mask_sub_ps(tail, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), one, tail);
}

inline __m512 activate(__m512 x, int activation) {
  switch (activation) {
    case kRelu:
      return _mm512_max_ps(_mm512_setzero_ps(), x);
    case kGelu:
      return _mm512_mul_ps(x, normal_cdf(x));
    case kGeluTanh: {  // x (1 + tanh u) / 2 is x sigmoid(2 u)
      const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
      const __m512 u = _mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x);
      return _mm512_mul_ps(x, sigmoid(_mm512_mul_ps(u, _mm512_set1_ps(1.5957691f))));
    }
    case kSilu:
      return _mm512_mul_ps(x, sigmoid(x));
    default:
      return x;
  }
}

}  // namespace cktk
