// Attention of one query at a time to the slots of a cache that it sees.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "vectors.h"

namespace cktk {

// Lane i of the result is the sum of all lanes of rows[i].
inline __m512 sums_of_lanes(const __m512 (&rows)[16]) {
  __m512 twos[8], fours[4], eights[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    twos[i] = _mm512_add_ps(_mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]),
                            _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]));
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(twos[2 * i]), b = _mm512_castps_pd(twos[2 * i + 1]);
    fours[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i)
    eights[i] = _mm512_add_ps(_mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0x88),
                              _mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0xdd));
  return _mm512_add_ps(_mm512_shuffle_f32x4(eights[0], eights[1], 0x88),
                       _mm512_shuffle_f32x4(eights[0], eights[1], 0xdd));
}

// Products of a query with the keys at 16 offsets.
inline __m512 scores_of(const float* query, const float* keys, const int32_t* offsets, int64_t width) {
  __m512 sums[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) sums[i] = _mm512_setzero_ps();
  for (int64_t c = 0; c < width; c += 16) {
    const __mmask16 part = first(width - c);
    const __m512 own = _mm512_maskz_loadu_ps(part, query + c);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
      sums[i] = _mm512_fmadd_ps(own, _mm512_maskz_loadu_ps(part, keys + offsets[i] + c), sums[i]);
  }
  return sums_of_lanes(sums);
}

// What one query sees: offsets of its slots in keys and values, what is added to their scores, and the scores.
// All are padded to whole vectors.
struct Visible {
  std::vector<int32_t> offsets;
  std::vector<float> added, scores;
  int64_t count = 0;

  // All n slots of `width` floats, or those that `mask` (n) leaves.
  void look(const float* mask, int64_t n, int64_t width) {
    const int64_t room = n + 32;
    if (int64_t(offsets.size()) < room) offsets.resize(2 * room), added.resize(2 * room), scores.resize(2 * room);
    count = 0;
    __m512i places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    places = _mm512_mullo_epi32(places, _mm512_set1_epi32(int(width)));
    for (int64_t j = 0; j < n; j += 16) {
      __mmask16 seen = first(n - j);
      const __m512 values = mask ? _mm512_maskz_loadu_ps(seen, mask + j) : _mm512_setzero_ps();
      seen = _mm512_mask_cmp_ps_mask(seen, values, _mm512_set1_ps(kNever), _CMP_GT_OQ);
      _mm512_storeu_si512(offsets.data() + count, _mm512_maskz_compress_epi32(seen, places));
      _mm512_storeu_ps(added.data() + count, _mm512_maskz_compress_ps(seen, values));
      count += __builtin_popcount(seen);
      places = _mm512_add_epi32(places, _mm512_set1_epi32(int(16 * width)));
    }
    _mm512_storeu_si512(offsets.data() + count, _mm512_setzero_si512());
  }
};

// Values weighted by scores, for the 16 to 64 floats of a row from `values` on, of which `left` count. Two slots in
// turn hide the time of an addition.
template <int VECTORS>
void weigh(const float* values, const Visible& visible, int64_t left, __m512 share, float* out) {
  __m512 even[VECTORS], odd[VECTORS];
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) even[v] = odd[v] = _mm512_setzero_ps();
  const __mmask16 last = first(left - 16 * (VECTORS - 1));
  const float* scores = visible.scores.data();
  for (int64_t i = 0; i < visible.count; i += 2) {
    // The score behind the last one is 0.
    const __m512 one = _mm512_set1_ps(scores[i]), other = _mm512_set1_ps(scores[i + 1]);
    const float *row = values + visible.offsets[i], *next = values + visible.offsets[i + 1];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      const __mmask16 part = v < VECTORS - 1 ? __mmask16(0xFFFF) : last;
      even[v] = _mm512_fmadd_ps(one, _mm512_maskz_loadu_ps(part, row + 16 * v), even[v]);
      odd[v] = _mm512_fmadd_ps(other, _mm512_maskz_loadu_ps(part, next + 16 * v), odd[v]);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v)
    _mm512_mask_storeu_ps(out + 16 * v, v < VECTORS - 1 ? __mmask16(0xFFFF) : last,
                          _mm512_mul_ps(_mm512_add_ps(even[v], odd[v]), share));
}

// Scores to probabilities that are still to be divided by the sum, which is returned.
inline float exponentials(float* scores, int64_t count) {
  __m512 high = _mm512_set1_ps(kNever), total = _mm512_setzero_ps();
  for (int64_t i = 0; i < count; i += 16)
    high = _mm512_mask_max_ps(high, first(count - i), high, _mm512_maskz_loadu_ps(first(count - i), scores + i));
  const __m512 shift = _mm512_set1_ps(_mm512_reduce_max_ps(high));
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 mask = first(count - i);
    const __m512 value = exponential(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, scores + i), shift));
    _mm512_mask_storeu_ps(scores + i, mask, value);
    total = _mm512_mask_add_ps(total, mask, total, value);
  }
  return _mm512_reduce_add_ps(total);
}

// One query of one head.
inline void attend_one(const float* query, const float* keys, const float* values, int64_t width, Visible& visible,
                       float* out) {
  float* scores = visible.scores.data();
  for (int64_t i = 0; i < visible.count; i += 16) {
    const __m512 found = scores_of(query, keys, visible.offsets.data() + i, width);
    _mm512_storeu_ps(scores + i, _mm512_add_ps(found, _mm512_loadu_ps(visible.added.data() + i)));
  }
  const __m512 share = _mm512_set1_ps(1.0f / exponentials(scores, visible.count));
  scores[visible.count] = 0.0f;
  for (int64_t c = 0; c < width; c += 64) {
    const int64_t left = width - c;
    if (left > 48)
      weigh<4>(values + c, visible, left, share, out + c);
    else if (left > 32)
      weigh<3>(values + c, visible, left, share, out + c);
    else if (left > 16)
      weigh<2>(values + c, visible, left, share, out + c);
    else
      weigh<1>(values + c, visible, left, share, out + c);
  }
}

}  // namespace cktk
