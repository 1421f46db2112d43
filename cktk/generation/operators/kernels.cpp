// Products, norms, attention and logits for a few rows at a time, on CPUs with AVX-512 and its VNNI.
//
// One call does what takes PyTorch five to fifty: students are so small that the time between operators counts more
// than the operators. The result of a row does not depend on the rows beside it. See kernels.py for the callers.
//
// Products read a weight (out, in) as panels of 32 outputs. In float32 a panel is (in, 32). In 8-bit integers it is
// (in / 4, 32, 4), which is what VNNI and AMX both read; weights are stored as unsigned w + 128, and
// sum (w + 128) x - 128 sum x = sum w x, where x are the integers of a row.

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

constexpr int64_t kPanel = 32;         // outputs of a panel: two vectors
constexpr int64_t kBlock = 12;         // rows of a block: 24 vectors of sums, as many as the registers hold
constexpr int64_t kRowsAtOnce = 96;    // rows that are multiplied with all panels before the next ones: they stay in L2
constexpr int64_t kDepth = 64;         // integers of a row of a tile of AMX; rows are padded to a multiple of it
constexpr int64_t kTileRows = 16;      // rows of a tile of AMX
constexpr int64_t kRowsForTiles = 8;   // from so many rows on AMX is faster than VNNI
constexpr float kNever = -std::numeric_limits<float>::infinity();

enum Activation : int { kNone = 0, kRelu = 1, kGelu = 2, kGeluTanh = 3, kSilu = 4 };

inline __mmask16 first(int64_t count) {
  return count >= 16 ? __mmask16(0xFFFF) : count <= 0 ? __mmask16(0) : __mmask16((1u << count) - 1);
}

// exp(x) within 2 units of the last place; exp(-inf) is 0.
inline __m512 exponential(__m512 x) {
  x = _mm512_max_ps(_mm512_min_ps(x, _mm512_set1_ps(88.7f)), _mm512_set1_ps(-150.0f));
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
      return _mm512_max_ps(x, _mm512_setzero_ps());
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

// Products ------------------------------------------------------------------------------------------------------------

// Half a panel of one row: bias and activation, and where it goes.
struct Finish {
  const float* bias;  // of the panel, or null
  int64_t columns;    // of the panel that exist
  int activation;

  void store(float* y, int half, __m512 x) const {
    const __mmask16 mask = first(columns - 16 * half);
    if (bias) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(mask, bias + 16 * half));
    _mm512_mask_storeu_ps(y + 16 * half, mask, activate(x, activation));
  }
};

struct Share {
  int64_t number, of;
};

template <int ROWS = kBlock, class Block>
void one_block(int64_t rows, const Block& block) {
  if constexpr (ROWS > 0) {
    if (rows == ROWS)
      block(std::integral_constant<int, ROWS>());
    else
      one_block<ROWS - 1>(rows, block);
  }
}

// Calls block(ROWS, first row, share): share i of n is what the block fetches of the next panel into L2.
template <class Block>
void in_blocks(int64_t rows, const Block& block) {
  const int64_t blocks = (rows + kBlock - 1) / kBlock;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t begin = rows * i / blocks, end = rows * (i + 1) / blocks;
    one_block(end - begin, [&](auto count) { block(count, begin, Share{i, blocks}); });
  }
}

// Asks for a part of the next panel, two lines at a step: without that few rows wait for memory half of the time.
class Fetch {
 public:
  Fetch(const void* panel, int64_t steps, const Share& share)
      : at_(static_cast<const char*>(panel) + steps * kStep + share.number * steps * (kStep / share.of)),
        step_(kStep / share.of) {}

  void step() {
    _mm_prefetch(at_, _MM_HINT_T1);
    _mm_prefetch(at_ + 64, _MM_HINT_T1);
    at_ += step_;
  }

 private:
  static constexpr int64_t kStep = 128;  // bytes of a panel in one step of a product
  const char* at_;
  const int64_t step_;
};

struct DenseProduct {
  const float* x;
  int64_t in;
  const float* weight;

  void panel(int64_t number, int64_t begin, int64_t rows, float* y, int64_t stride, const Finish& finish) const {
    const float* panel = weight + number * in * kPanel;
    in_blocks(rows, [&](auto count, int64_t at, const Share& share) {
      constexpr int ROWS = decltype(count)::value;
      __m512 sums[ROWS][2];
#pragma GCC unroll 12
      for (int r = 0; r < ROWS; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
      const float* row = x + (begin + at) * in;
      Fetch next(panel, in, share);
      for (int64_t k = 0; k < in; ++k) {
        next.step();
        const __m512 low = _mm512_loadu_ps(panel + k * kPanel), high = _mm512_loadu_ps(panel + k * kPanel + 16);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; ++r) {
          const __m512 value = _mm512_set1_ps(row[r * in + k]);
          sums[r][0] = _mm512_fmadd_ps(value, low, sums[r][0]);
          sums[r][1] = _mm512_fmadd_ps(value, high, sums[r][1]);
        }
      }
#pragma GCC unroll 12
      for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) finish.store(y + (begin + at + r) * stride, half, sums[r][half]);
    });
  }
};

// Rows as integers from -127 to 127, padded with zeros to whole tiles, and what they are multiplied by.
class Quantised {
 public:
  Quantised(const float* x, int64_t rows, int64_t in)
      : depth((in + kDepth - 1) / kDepth * kDepth),
        values_((rows + kTileRows - 1) / kTileRows * kTileRows * depth),
        scales(rows),
        sums(rows) {
    for (int64_t row = 0; row < rows; ++row) quantise(x + row * in, in, row);
  }

  const int8_t* row(int64_t number) const { return values_.data() + number * depth; }

  const int64_t depth;

 private:
  std::vector<int8_t> values_;

 public:
  std::vector<float> scales;
  std::vector<int32_t> sums;

 private:
  void quantise(const float* x, int64_t in, int64_t row) {
    __m512 largest = _mm512_setzero_ps();
    for (int64_t k = 0; k < in; k += 16)
      largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_maskz_loadu_ps(first(in - k), x + k)));
    const float scale = std::max(_mm512_reduce_max_ps(largest), 1e-30f) / 127.0f;
    const __m512 divisor = _mm512_set1_ps(scale);
    __m512i sum = _mm512_setzero_si512();
    int8_t* out = values_.data() + row * depth;
    for (int64_t k = 0; k < in; k += 16) {
      const __m512 value = _mm512_div_ps(_mm512_maskz_loadu_ps(first(in - k), x + k), divisor);
      const __m512i whole = _mm512_cvt_roundps_epi32(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      sum = _mm512_add_epi32(sum, whole);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + k), _mm512_cvtsepi32_epi8(whole));
    }
    scales[row] = scale;
    sums[row] = _mm512_reduce_add_epi32(sum);
  }
};

struct Int8Product {
  const Quantised& x;
  const uint8_t* weight;
  const float* scales;  // of the outputs, padded to whole panels
  bool tiles;           // AMX

  void panel(int64_t number, int64_t begin, int64_t rows, float* y, int64_t stride, const Finish& finish) const {
    const uint8_t* panel = weight + number * x.depth * kPanel;
    const auto store = [&](int64_t row, int half, __m512i sum) {
      const __m512i whole = _mm512_sub_epi32(sum, _mm512_set1_epi32(128 * x.sums[row]));
      const __m512 scale = _mm512_loadu_ps(scales + number * kPanel + 16 * half);
      const __m512 value = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(whole), scale), _mm512_set1_ps(x.scales[row]));
      finish.store(y + row * stride, half, value);
    };
    if (tiles && rows >= kRowsForTiles)
      by_tiles(panel, begin, rows, store);
    else
      by_rows(panel, begin, rows, store);
  }

 private:
  template <class Store>
  void by_rows(const uint8_t* panel, int64_t begin, int64_t rows, const Store& store) const {
    in_blocks(rows, [&](auto count, int64_t at, const Share& share) {
      constexpr int ROWS = decltype(count)::value;
      __m512i sums[ROWS][2];
#pragma GCC unroll 12
      for (int r = 0; r < ROWS; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_si512();
      const int8_t* row = x.row(begin + at);
      Fetch next(panel, x.depth / 4, share);
      for (int64_t k = 0; k < x.depth; k += 4) {
        next.step();
        const __m512i low = _mm512_loadu_si512(panel + k * kPanel), high = _mm512_loadu_si512(panel + k * kPanel + 64);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; ++r) {
          int32_t four;
          std::memcpy(&four, row + r * x.depth + k, 4);
          const __m512i value = _mm512_set1_epi32(four);
          sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], low, value);
          sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], high, value);
        }
      }
#pragma GCC unroll 12
      for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) store(begin + at + r, half, sums[r][half]);
    });
  }

  template <class Store>
  void by_tiles(const uint8_t* panel, int64_t begin, int64_t rows, const Store& store) const {
    // Two tiles of rows and two of outputs give four tiles of sums.
    alignas(64) int32_t sums[2][2][kTileRows][16];
    for (int64_t at = 0; at < rows; at += 2 * kTileRows) {
      const bool both = rows - at > kTileRows;
      const int8_t* row = x.row(begin + at);
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int64_t k = 0; k < x.depth; k += kDepth) {
        _tile_loadd(4, row + k, x.depth);
        _tile_loadd(6, panel + k * kPanel, 4 * kPanel);
        _tile_loadd(7, panel + k * kPanel + 64, 4 * kPanel);
        _tile_dpbsud(0, 4, 6);
        _tile_dpbsud(1, 4, 7);
        if (both) {
          _tile_loadd(5, row + kTileRows * x.depth + k, x.depth);
          _tile_dpbsud(2, 5, 6);
          _tile_dpbsud(3, 5, 7);
        }
      }
      _tile_stored(0, sums[0][0], 64);
      _tile_stored(1, sums[0][1], 64);
      _tile_stored(2, sums[1][0], 64);
      _tile_stored(3, sums[1][1], 64);
      for (int64_t r = 0; r < std::min(rows - at, 2 * kTileRows); ++r)
        for (int half = 0; half < 2; ++half)
          store(begin + at + r, half, _mm512_load_si512(sums[r / kTileRows][half][r % kTileRows]));
    }
  }
};

// Tiles of AMX belong to a thread; all eight have 16 rows of 64 bytes.
class TileUse {
 public:
  explicit TileUse(bool wanted) : wanted_(wanted) {
    if (!wanted) return;
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    _tile_loadconfig(&config);
  }
  ~TileUse() {
    if (wanted_) _tile_release();
  }

 private:
  const bool wanted_;
};

template <class Product>
void multiply(const Product& product, bool tiles, int64_t rows, int64_t out, const float* bias, int activation,
              float* y, int threads) {
  const int64_t panels = (out + kPanel - 1) / kPanel;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const TileUse use(tiles);
    for (int64_t begin = 0; begin < rows; begin += kRowsAtOnce) {
      const int64_t count = std::min(kRowsAtOnce, rows - begin);
#pragma omp for nowait
      for (int64_t p = 0; p < panels; ++p) {
        const Finish finish{bias ? bias + p * kPanel : nullptr, out - p * kPanel, activation};
        product.panel(p, begin, count, y + p * kPanel, out, finish);
      }
    }
  }
}

// Logits --------------------------------------------------------------------------------------------------------------

// Largest value of a row of logits, and the sum of their exponentials less it.
void sum_up(const float* logits, int64_t columns, float* largest, float* sum) {
  __m512 high = _mm512_set1_ps(kNever), total = _mm512_setzero_ps();
  for (int64_t c = 0; c < columns; c += 16) high = _mm512_max_ps(high, _mm512_loadu_ps(logits + c));
  *largest = _mm512_reduce_max_ps(high);
  // A tile without any token has the maximum -inf.
  const __m512 shift = _mm512_set1_ps(std::max(*largest, -1e30f));
  for (int64_t c = 0; c < columns; c += 16)
    total = _mm512_add_ps(total, exponential(_mm512_sub_ps(_mm512_loadu_ps(logits + c), shift)));
  *sum = _mm512_reduce_add_ps(total);
}

// Writes logits (tiles, rows, width), of which `columns` count, and sums up each tile while it is cached.
template <class Product>
void logits(const Product& product, bool amx, int64_t rows, int64_t tiles, int64_t width, int64_t columns,
            const float* bias, float* y, float* maxima, float* sums, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const TileUse use(amx);
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
        sum_up(out + row * width, width, maxima + tile * rows + row, sums + tile * rows + row);
      }
    }
  }
}

// Attention -----------------------------------------------------------------------------------------------------------

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
float exponentials(float* scores, int64_t count) {
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
void attend_one(const float* query, const float* keys, const float* values, int64_t width, Visible& visible,
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

}  // namespace

#define CKTK_API extern "C" __attribute__((visibility("default")))


// 0: this processor cannot run the kernels; 1: it can; 2: it has AMX as well, which the operating system has granted.
CKTK_API int cktk_level() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vnni"))
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
  multiply(DenseProduct{x, in, weight}, false, rows, out, bias, activation, y, threads);
}

// The same in 8-bit integers. `scales` are those of the outputs.
CKTK_API void cktk_linear_int8(const float* x, int64_t rows, int64_t in, const uint8_t* weight, const float* scales,
                      const float* bias, int64_t out, int activation, float* y, int amx, int threads) {
  const Quantised whole(x, rows, in);
  multiply(Int8Product{whole, weight, scales, amx != 0}, amx != 0, rows, out, bias, activation, y, threads);
}

// Logits y (tiles, rows, width), their maxima and sums of exponentials (tiles, rows); `columns` of all columns count.
CKTK_API void cktk_logits(const float* x, int64_t rows, int64_t in, const float* weight, const float* bias, int64_t tiles,
                 int64_t width, int64_t columns, float* y, float* maxima, float* sums, int threads) {
  logits(DenseProduct{x, in, weight}, false, rows, tiles, width, columns, bias, y, maxima, sums, threads);
}

CKTK_API void cktk_logits_int8(const float* x, int64_t rows, int64_t in, const uint8_t* weight, const float* scales,
                      const float* bias, int64_t tiles, int64_t width, int64_t columns, float* y, float* maxima,
                      float* sums, int amx, int threads) {
  const Quantised whole(x, rows, in);
  logits(Int8Product{whole, weight, scales, amx != 0}, amx != 0, rows, tiles, width, columns, bias, y, maxima, sums,
         threads);
}

// y (rows, width) = norm(x + added); `added` may be null. With `bias` a LayerNorm, without an RMS norm.
CKTK_API void cktk_norm(const float* x, const float* added, int64_t rows, int64_t width, const float* weight, const float* bias,
               float eps, float* y) {
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
CKTK_API void cktk_attend(const float* query, int64_t query_stride, float* keys, float* values, int64_t batch, int64_t heads,
                 int64_t beams, int64_t width, int64_t capacity, int64_t n, const float* mask, int64_t mask_batch,
                 int64_t mask_head, int64_t mask_beam, int64_t fresh, float* out, int threads) {
  const int64_t all = heads * width;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t pair = 0; pair < batch * heads; ++pair) {
    static thread_local Visible visible;
    const int64_t sentence = pair / heads, head = pair % heads;
    float *key = keys + pair * capacity * width, *value = values + pair * capacity * width;
    for (int64_t beam = 0; fresh >= 0 && beam < beams; ++beam) {
      const float* row = query + (sentence * beams + beam) * query_stride + head * width;
      std::copy(row + all, row + all + width, key + (fresh + beam) * width);
      std::copy(row + 2 * all, row + 2 * all + width, value + (fresh + beam) * width);
    }
    // The next pair is on its way while this one is worked on.
    for (int64_t i = 0; pair + 1 < batch * heads && i < n * width; i += 16) {
      _mm_prefetch(key + capacity * width + i, _MM_HINT_T1);
      _mm_prefetch(value + capacity * width + i, _MM_HINT_T1);
    }
    for (int64_t beam = 0; beam < beams; ++beam) {
      const int64_t row = sentence * beams + beam;
      const float* own = mask ? mask + sentence * mask_batch + head * mask_head + beam * mask_beam : nullptr;
      if (beam == 0 || mask_beam != 0) visible.look(own, n, width);
      attend_one(query + row * query_stride + head * width, key, value, width, visible,
                 out + row * all + head * width);
    }
  }
}

// Moves slots (batch, used; rising) of a cache (2, batch, heads, capacity, width) to its beginning.
CKTK_API void cktk_keep_slots(float* cache, int64_t batch, int64_t heads, int64_t capacity, int64_t width,
                              const int64_t* slots, int64_t used, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t part = 0; part < 2 * batch * heads; ++part) {
    float* own = cache + part * capacity * width;
    const int64_t* kept = slots + part / heads % batch * used;
    for (int64_t j = 0; j < used; ++j)
      if (kept[j] != j) std::copy_n(own + kept[j] * width, width, own + j * width);
  }
}
