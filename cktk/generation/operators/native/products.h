// Products of a few rows with weights, in float32 and in 8-bit integers.
//
// A weight (out, in) is read as panels of 32 outputs. In float32 a panel is (in, 32). In 8-bit integers it is
// (in / 4, 32, 4), which is what VNNI and AMX both read; weights are stored as unsigned w + 128, and
// sum (w + 128) x - 128 sum x = sum w x, where x are the integers of a row.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "vectors.h"

namespace cktk {

constexpr int64_t kPanel = 32;        // outputs of a panel: two vectors
constexpr int64_t kBlock = 12;        // rows of a block: 24 vectors of sums, as many as the registers hold
constexpr int64_t kRowsAtOnce = 96;   // rows that are multiplied with all panels in turn: they stay in L2
constexpr int64_t kDepth = 64;        // integers of a row of a tile of AMX; rows are padded to a multiple of it
constexpr int64_t kTileRows = 16;     // rows of a tile of AMX
constexpr int64_t kRowsForTiles = 8;  // from so many rows on AMX is faster than VNNI
constexpr int64_t kWorthThreads = 20'000'000;  // multiplications; less is done before a second thread has woken up

// How many threads shall do so many multiplications.
inline int useful(int threads, int64_t multiplications) { return multiplications < kWorthThreads ? 1 : threads; }

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
  static constexpr bool tiles = false;

  // Few rows wait for the weights.
  int64_t work(int64_t rows, int64_t out) const { return std::max<int64_t>(rows, 12) * in * out; }

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

// Rows as integers from -127 to 127, padded with zeros to whole tiles; each with what its integers are multiplied by,
// and their sum.
struct Quantised {
  const int64_t depth;
  std::vector<int8_t> values;
  std::vector<float> scales;
  std::vector<int32_t> sums;

  Quantised(const float* x, int64_t rows, int64_t in)
      : depth((in + kDepth - 1) / kDepth * kDepth),
        values((rows + kTileRows - 1) / kTileRows * kTileRows * depth),
        scales(rows),
        sums(rows) {
    for (int64_t row = 0; row < rows; ++row) quantise(x + row * in, in, row);
  }

  const int8_t* row(int64_t number) const { return values.data() + number * depth; }

 private:
  void quantise(const float* x, int64_t in, int64_t row) {
    __m512 largest = _mm512_setzero_ps();
    bool nan = false;
    for (int64_t k = 0; k < in; k += 16) {
      const __m512 value = _mm512_maskz_loadu_ps(first(in - k), x + k);
      largest = _mm512_max_ps(largest, _mm512_abs_ps(value));
      nan |= _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q) != 0;
    }
    const float scale = nan ? std::nanf("") : std::max(_mm512_reduce_max_ps(largest), 1e-30f) / 127.0f;
    __m512i sum = _mm512_setzero_si512();
    int8_t* out = values.data() + row * depth;
    for (int64_t k = 0; k < in; k += 16) {
      const __m512 value = _mm512_div_ps(_mm512_maskz_loadu_ps(first(in - k), x + k), _mm512_set1_ps(scale));
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

  int64_t work(int64_t rows, int64_t out) const { return std::max<int64_t>(rows, 12) * x.depth * out / 4; }

  void panel(int64_t number, int64_t begin, int64_t rows, float* y, int64_t stride, const Finish& finish) const {
    const uint8_t* panel = weight + number * x.depth * kPanel;
    const auto store = [&](int64_t row, int half, __m512i sum) {
      const __m512i whole = _mm512_sub_epi32(sum, _mm512_set1_epi32(128 * x.sums[row]));
      const __m512 scale = _mm512_loadu_ps(scales + number * kPanel + 16 * half);
      const __m512 value =
          _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(whole), scale), _mm512_set1_ps(x.scales[row]));
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
void multiply(const Product& product, int64_t rows, int64_t out, const float* bias, int activation, float* y,
              int threads) {
  const int64_t panels = (out + kPanel - 1) / kPanel;
  threads = useful(threads, product.work(rows, out));
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const TileUse use(product.tiles);
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

}  // namespace cktk
