// What a step of decoding takes, for a few rows at a time, on CPUs with AVX-512 and its VNNI.
//
// One call does what takes PyTorch five to fifty: students are so small that the time between operators counts more
// than the operators. The result of a row does not depend on the rows beside it. kernels.py calls these functions.

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "attention.h"
#include "logits.h"
#include "products.h"

#define CKTK_API extern "C" __attribute__((visibility("default")))

using namespace cktk;

// To be changed, here and in kernels.py, with what any of these functions takes or does.
CKTK_API int cktk_version() { return 1; }

// 0: this processor cannot run the kernels; 1: it can; 2: it has AMX as well, which the operating system has granted.
CKTK_API int cktk_level() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq") ||
      !__builtin_cpu_supports("avx512vnni"))
    return 0;
  unsigned a = 7, b, c = 0, d;
  __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  const bool amx = (d >> 24 & 1) && (d >> 25 & 1);
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // of arch_prctl
  return amx && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 ? 2 : 1;
}

// y (rows, out) = activation(x (rows, in) @ weight.T + bias); bias may be null.
CKTK_API void cktk_linear(const float* x, int64_t rows, int64_t in, const float* weight, const float* bias, int64_t out,
                          int activation, float* y, int threads) {
  multiply(DenseProduct{x, in, weight}, rows, out, bias, activation, y, threads);
}

// The same in 8-bit integers. `scales` are those of the outputs.
CKTK_API void cktk_linear_int8(const float* x, int64_t rows, int64_t in, const uint8_t* weight, const float* scales,
                               const float* bias, int64_t out, int activation, float* y, int amx, int threads) {
  const Quantised whole(x, rows, in);
  multiply(Int8Product{whole, weight, scales, amx != 0}, rows, out, bias, activation, y, threads);
}

// Logits y (tiles, rows, width), the maxima (tiles, rows) and the normalisers (rows); `columns` of all columns count.
CKTK_API void cktk_logits(const float* x, int64_t rows, int64_t in, const float* weight, const float* bias,
                          int64_t tiles, int64_t width, int64_t columns, float* y, float* maxima, float* normalisers,
                          int threads) {
  logits(DenseProduct{x, in, weight}, rows, tiles, width, columns, bias, y, maxima, normalisers, threads);
}

CKTK_API void cktk_logits_int8(const float* x, int64_t rows, int64_t in, const uint8_t* weight, const float* scales,
                               const float* bias, int64_t tiles, int64_t width, int64_t columns, float* y,
                               float* maxima, float* normalisers, int amx, int threads) {
  const Quantised whole(x, rows, in);
  logits(Int8Product{whole, weight, scales, amx != 0}, rows, tiles, width, columns, bias, y, maxima, normalisers,
         threads);
}

// The `wanted` best continuations of each sentence, best first: scores, beams and columns (batch, wanted) of the logits
// `tiles` (tiles, batch * beams, width) with `maxima` (tiles, batch * beams), plus `offsets` (batch, beams).
CKTK_API void cktk_best(const float* tiles, const float* maxima, const float* offsets, int64_t batch, int64_t beams,
                        int64_t count, int64_t width, int64_t wanted, float* scores, int64_t* parents,
                        int64_t* columns) {
  std::vector<Candidate> best(wanted);
  for (int64_t sentence = 0; sentence < batch; ++sentence) {
    best_of(tiles, maxima, offsets + sentence * beams, sentence * beams, batch * beams, beams, count, width, best);
    for (const Candidate& found : best) {
      *scores++ = found.score;
      *parents++ = found.beam;
      *columns++ = found.column;
    }
  }
}

// y (rows, width) = norm(x + added); `added` may be null. With `bias` a LayerNorm, without an RMS norm.
CKTK_API void cktk_norm(const float* x, const float* added, int64_t rows, int64_t width, const float* weight,
                        const float* bias, float eps, float* y) {
  for (int64_t row = 0; row < rows; ++row, x += width, added += added ? width : 0, y += width) {
    float sum = 0, squares = 0;
    if (added) {
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) y[c] = x[c] + added[c];
    } else {
      std::copy(x, x + width, y);
    }
    if (bias) {
#pragma omp simd reduction(+ : sum)
      for (int64_t c = 0; c < width; ++c) sum += y[c];
    }
    const float mean = sum / width;
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < width; ++c) squares += (y[c] - mean) * (y[c] - mean);
    const float scale = 1.0f / std::sqrt(squares / width + eps);
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) y[c] = (y[c] - mean) * scale * weight[c] + (bias ? bias[c] : 0.0f);
  }
}

// Attention of queries (batch * beams, heads * width), `query_stride` floats apart, to n slots; out is as the queries.
//
// Keys and values are (batch, heads, capacity, width) each. `mask` is added to the scores, -inf hides a slot; it is
// (batch, heads, beams, n) by the strides given, or null. With `fresh` >= 0 keys and values of the rows stand behind
// the query, and are first written to the slots from there on.
CKTK_API void cktk_attend(const float* query, int64_t query_stride, float* keys, float* values, int64_t batch,
                          int64_t heads, int64_t beams, int64_t width, int64_t capacity, int64_t n, const float* mask,
                          int64_t mask_batch, int64_t mask_head, int64_t mask_beam, int64_t fresh, float* out,
                          int threads) {
  const int64_t all = heads * width;
  threads = useful(threads, 16 * batch * beams * all * n);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t sentence = 0; sentence < batch; ++sentence) {
    static thread_local std::vector<Visible> seen;
    if (int64_t(seen.size()) < beams) seen.resize(beams);
    const int64_t lists = mask && mask_beam ? beams : 1;
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t pair = sentence * heads + head;
      float *key = keys + pair * capacity * width, *value = values + pair * capacity * width;
      for (int64_t beam = 0; fresh >= 0 && beam < beams; ++beam) {
        const float* row = query + (sentence * beams + beam) * query_stride + head * width;
        std::copy_n(row + all, width, key + (fresh + beam) * width);
        std::copy_n(row + 2 * all, width, value + (fresh + beam) * width);
      }
      // The next pair is on its way while this one is worked on.
      for (int64_t i = 0; pair + 1 < batch * heads && i < n * width; i += 16) {
        _mm_prefetch(key + capacity * width + i, _MM_HINT_T1);
        _mm_prefetch(value + capacity * width + i, _MM_HINT_T1);
      }
      for (int64_t list = 0; list < lists && (head == 0 || (mask && mask_head)); ++list)
        seen[list].look(mask ? mask + sentence * mask_batch + head * mask_head + list * mask_beam : nullptr, n, width);
      for (int64_t beam = 0; beam < beams; ++beam) {
        const int64_t row = sentence * beams + beam;
        attend_one(query + row * query_stride + head * width, key, value, width, seen[lists > 1 ? beam : 0],
                   out + row * all + head * width);
      }
    }
  }
}

// Moves slots (batch, used; rising) of a cache (2, batch, heads, capacity, width) to its beginning.
CKTK_API void cktk_keep_slots(float* cache, int64_t batch, int64_t heads, int64_t capacity, int64_t width,
                              const int64_t* slots, int64_t used, int threads) {
  threads = useful(threads, 32 * batch * heads * used * width);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t part = 0; part < 2 * batch * heads; ++part) {
    float* own = cache + part * capacity * width;
    const int64_t* kept = slots + part / heads % batch * used;
    for (int64_t j = 0; j < used; ++j)
      if (kept[j] != j) std::copy_n(own + kept[j] * width, width, own + j * width);
  }
}
