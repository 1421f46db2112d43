// Scores of all tokens of a vocabulary, tile by tile, and the best of them.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "products.h"

namespace cktk {

// Largest value of a row of logits, and the sum of their exponentials less it.
inline void sum_up(const float* logits, int64_t columns, float* largest, float* sum) {
  __m512 high = _mm512_set1_ps(kNever), total = _mm512_setzero_ps();
  for (int64_t c = 0; c < columns; c += 16) high = _mm512_max_ps(high, _mm512_loadu_ps(logits + c));
  *largest = _mm512_reduce_max_ps(high);
  // A tile without any token has the maximum -inf.
  const __m512 shift = _mm512_set1_ps(std::max(*largest, -1e30f));
  for (int64_t c = 0; c < columns; c += 16)
    total = _mm512_add_ps(total, exponential(_mm512_sub_ps(_mm512_loadu_ps(logits + c), shift)));
  *sum = _mm512_reduce_add_ps(total);
}

// The log of the sum of the exponentials of all logits of a row, from those of its tiles, `step` floats apart.
inline float normaliser(const float* maxima, const float* sums, int64_t tiles, int64_t step) {
  float largest = kNever;
  for (int64_t t = 0; t < tiles; ++t) largest = std::max(largest, maxima[t * step]);
  double sum = 0;
  for (int64_t t = 0; t < tiles; ++t) sum += sums[t * step] * std::exp(double(maxima[t * step] - largest));
  return largest + float(std::log(sum));
}

// Writes logits (tiles, rows, width), of which `columns` count, the maxima of their tiles, and normalisers of rows.
template <class Product>
void logits(const Product& product, int64_t rows, int64_t tiles, int64_t width, int64_t columns, const float* bias,
            float* y, float* maxima, float* normalisers, int threads) {
  std::vector<float> sums(tiles * rows);
  threads = useful(threads, product.work(rows, tiles * width));
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const TileUse use(product.tiles);
#pragma omp for
    for (int64_t tile = 0; tile < tiles; ++tile) {
      float* out = y + tile * rows * width;
      for (int64_t column = 0; column < width; column += kPanel) {
        const int64_t at = tile * width + column;
        product.panel(at / kPanel, 0, rows, out + column, width, Finish{bias ? bias + at : nullptr, kPanel, kNone});
      }
      const int64_t used = std::clamp<int64_t>(columns - tile * width, 0, width);
      for (int64_t row = 0; row < rows; ++row) {
        std::fill(out + row * width + used, out + (row + 1) * width, kNever);
        // A tile is summed up while it is cached.
        sum_up(out + row * width, width, maxima + tile * rows + row, sums.data() + tile * rows + row);
      }
    }
  }
  for (int64_t row = 0; row < rows; ++row) normalisers[row] = normaliser(maxima + row, sums.data() + row, tiles, rows);
}

// A continuation of a sentence.
struct Candidate {
  float score = kNever;
  int64_t beam = 0, column = 0;
};

// Puts a candidate at its place among the best, which are in order; the first of equal ones stays before the others.
inline void insert(std::vector<Candidate>& best, const Candidate& found) {
  auto place = best.end() - 1;
  for (; place != best.begin() && (place - 1)->score < found.score; --place) *place = *(place - 1);
  *place = found;
}

// The best continuations of one sentence; the k best lie in the k tiles with the largest maxima.
inline void best_of(const float* tiles, const float* maxima, const float* offsets, int64_t first_row, int64_t rows,
                    int64_t beams, int64_t count, int64_t width, std::vector<Candidate>& best) {
  std::fill(best.begin(), best.end(), Candidate());
  std::vector<float> heights;
  for (int64_t beam = 0; beam < beams; ++beam)
    for (int64_t tile = 0; tile < count; ++tile) {
      const float height = maxima[tile * rows + first_row + beam] + offsets[beam];
      heights.push_back(std::isnan(height) ? kNever : height);  // which could not be sorted
    }
  std::vector<float> order = heights;
  const size_t wanted = std::min(best.size(), order.size());
  std::nth_element(order.begin(), order.begin() + wanted - 1, order.end(), std::greater<float>());
  const float least = order[wanted - 1];
  for (int64_t beam = 0; beam < beams; ++beam)
    for (int64_t tile = 0; tile < count; ++tile) {
      if (!(heights[beam * count + tile] >= least)) continue;
      const float* values = tiles + (tile * rows + first_row + beam) * width;
      for (int64_t column = 0; column < width; column += 16) {
        const __m512 scores = _mm512_add_ps(_mm512_loadu_ps(values + column), _mm512_set1_ps(offsets[beam]));
        unsigned above = _mm512_cmp_ps_mask(scores, _mm512_set1_ps(best.back().score), _CMP_GT_OQ);
        for (; above; above &= above - 1) {
          const int64_t at = column + __builtin_ctz(above);
          const float score = values[at] + offsets[beam];
          if (score > best.back().score) insert(best, {score, beam, tile * width + at});
        }
      }
    }
}

}  // namespace cktk
