// Attention in bfloat16 on processors that multiply pairs of bfloat16 (AVX-512 BF16).
//
// "FlashAttention-2", Dao, 2023: some queries of a head at a time, and the keys pass by in blocks.
// Logits and sums are float32; weights are rounded to bfloat16 before they meet the values. Keys
// and values of a head are laid out once, as vdpbf16ps multiplies them: in each 32-bit lane two
// channels of a key, or two tokens of a value's channel.

#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>

namespace {

using bfloat16 = uint16_t;

constexpr int64_t LANES = 16;    // of 32 bits in a vector
constexpr int64_t PANEL = 64;    // keys whose logits are made at a time
constexpr int64_t QUERIES = 60;  // queries that share a pass over the keys
constexpr int64_t KEYS = 512;    // keys whose logits are held at a time
constexpr float LOWEST = -std::numeric_limits<float>::infinity();
constexpr float LOG2_E = 1.44269504f;

constexpr int64_t rounded_up(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}

struct Sizes {
  int64_t batch, heads, key_heads, queries, keys, width;
};

// Distances in elements; 0 where a mask repeats. Channels, and a mask's keys, lie side by side.
struct Strides {
  int64_t sample, head, token;
};

enum class MaskType : int { none, bfloat16, float32, boolean };

// Added to the logits, or false where a key does not count.
struct Mask {
  const char* data;
  MaskType type;

  Mask from(int64_t element) const {
    if (type == MaskType::none) return *this;
    const int64_t bytes = type == MaskType::float32 ? 4 : type == MaskType::bfloat16 ? 2 : 1;
    return {data + element * bytes, type};
  }
};

// c[ROWS][16 * VECTORS] (+)= a[ROWS][depth] b[depth][16 * VECTORS], in pairs of bfloat16.
template <int ROWS, int VECTORS>
inline void multiply_tile(const bfloat16* a, int64_t a_stride, const uint32_t* b, int64_t b_stride,
                          int64_t depth, float* c, int64_t c_stride, bool accumulate) {
  __m512 sum[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v)
      sum[row][v] =
          accumulate ? _mm512_loadu_ps(c + row * c_stride + v * LANES) : _mm512_setzero_ps();
  for (int64_t pair = 0; pair < depth; ++pair) {
    __m512i right[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v)
      right[v] = _mm512_loadu_si512(b + pair * b_stride + v * LANES);
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; ++row) {
      int32_t both;
      std::memcpy(&both, a + row * a_stride + 2 * pair, sizeof both);
      const __m512bh left = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v)
        sum[row][v] = _mm512_dpbf16_ps(sum[row][v], left, (__m512bh)right[v]);
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) _mm512_storeu_ps(c + row * c_stride + v * LANES, sum[row][v]);
}

// The same for any number of rows: tiles of ROWS, then smaller ones.
template <int ROWS, int VECTORS>
void multiply_rows(int64_t rows, const bfloat16* a, int64_t a_stride, const uint32_t* b,
                   int64_t b_stride, int64_t depth, float* c, int64_t c_stride, bool accumulate) {
  for (; rows >= ROWS; rows -= ROWS, a += ROWS * a_stride, c += ROWS * c_stride)
    multiply_tile<ROWS, VECTORS>(a, a_stride, b, b_stride, depth, c, c_stride, accumulate);
  if constexpr (ROWS > 1)
    if (rows > 0)
      multiply_rows<ROWS - 1, VECTORS>(rows, a, a_stride, b, b_stride, depth, c, c_stride,
                                       accumulate);
}

// The same for any number of columns that is a multiple of 16.
void multiply(int64_t rows, int64_t columns, const bfloat16* a, int64_t a_stride, const uint32_t* b,
              int64_t b_stride, int64_t depth, float* c, int64_t c_stride, bool accumulate) {
  // As many rows as keep all sums in registers.
  static constexpr decltype(&multiply_rows<1, 1>) BY_VECTORS[] = {
      multiply_rows<12, 1>, multiply_rows<12, 2>, multiply_rows<8, 3>, multiply_rows<6, 4>,
      multiply_rows<5, 5>};
  constexpr int64_t MOST = std::size(BY_VECTORS);
  const int64_t vectors = columns / LANES;
  const int64_t tiles = (vectors + MOST - 1) / MOST;
  const int64_t even = (vectors + tiles - 1) / tiles;
  for (int64_t done = 0; done < vectors; done += even)
    BY_VECTORS[std::min(even, vectors - done) - 1](rows, a, a_stride, b + done * LANES, b_stride,
                                                   depth, c + done * LANES, c_stride, accumulate);
}

// The first so many lanes, of none to all.
inline __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>((1u << std::clamp<int64_t>(count, 0, LANES)) - 1);
}

// Keys as [panel][width / 2][64 keys], zeros behind the last.
void pack_keys(const bfloat16* keys, int64_t stride, int64_t count, int64_t width,
               uint32_t* packed) {
  for (int64_t first = 0; first < count; first += PANEL)
    for (int64_t lane = 0; lane < PANEL; ++lane) {
      uint32_t* to = packed + first * (width / 2) + lane;
      const int64_t key = first + lane;
      for (int64_t pair = 0; pair < width / 2; ++pair) {
        uint32_t both = 0;
        if (key < count) std::memcpy(&both, keys + key * stride + 2 * pair, sizeof both);
        to[pair * PANEL] = both;
      }
    }
}

// Values as [tokens / 2][columns], zeros behind the last of either.
void pack_values(const bfloat16* values, int64_t stride, int64_t count, int64_t padded,
                 int64_t width, int64_t columns, uint32_t* packed) {
  for (int64_t token = 0; token < padded; token += 2, packed += columns)
    for (int64_t channel = 0; channel < columns; channel += LANES) {
      const __mmask16 lanes = first_lanes(width - channel);
      const bfloat16* from = values + token * stride + channel;
      const __m256i even = _mm256_maskz_loadu_epi16(token < count ? lanes : 0, from);
      const __m256i odd = _mm256_maskz_loadu_epi16(token + 1 < count ? lanes : 0, from + stride);
      const __m512i both = _mm512_or_si512(_mm512_cvtepu16_epi32(even),
                                           _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
      _mm512_storeu_si512(packed + channel, both);
    }
}

// 2 to the power of x, which is not above 0; a NaN stays one.
inline __m512 exp2_of(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(x, whole);
  __m512 sum = _mm512_set1_ps(1.33335581e-3f);  // ln(2)^n / n!: far closer than bfloat16
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(9.61812911e-3f));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(5.55041087e-2f));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(2.40226507e-1f));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(6.93147181e-1f));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(sum, whole);
}

inline __m512 widened(__m256i values) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}

// Logits with the mask of 16 keys, of which `lanes` exist, in powers of 2.
inline __m512 masked(__m512 logits, Mask mask, int64_t key, __mmask16 lanes) {
  const __m512 log2_e = _mm512_set1_ps(LOG2_E);
  switch (mask.type) {
    case MaskType::none:
      break;
    case MaskType::bfloat16: {
      const __m256i added = _mm256_maskz_loadu_epi16(lanes, mask.from(key).data);
      logits = _mm512_fmadd_ps(widened(added), log2_e, logits);
      break;
    }
    case MaskType::float32: {
      const __m512 added = _mm512_maskz_loadu_ps(lanes, mask.from(key).data);
      logits = _mm512_fmadd_ps(added, log2_e, logits);
      break;
    }
    case MaskType::boolean: {
      const __m128i counts = _mm_maskz_loadu_epi8(lanes, mask.from(key).data);
      lanes = _mm_test_epi8_mask(counts, counts);
      break;
    }
  }
  return _mm512_mask_mov_ps(_mm512_set1_ps(LOWEST), lanes, logits);
}

// Logits of a row in powers of 2, masked, those behind the last key at -inf; returns the highest.
float scale_row(float* logits, int64_t count, int64_t padded, float scale, Mask mask) {
  const __m512 factor = _mm512_set1_ps(scale * LOG2_E);
  __m512 highest = _mm512_set1_ps(LOWEST);
  for (int64_t key = 0; key < padded; key += LANES) {
    const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(logits + key), factor);
    const __m512 value = masked(scaled, mask, key, first_lanes(count - key));
    _mm512_storeu_ps(logits + key, value);
    highest = _mm512_max_ps(highest, value);
  }
  return _mm512_reduce_max_ps(highest);
}

// The highest of a row's logits as they are; those behind the last key become -inf.
float highest_of(float* logits, int64_t count, int64_t padded) {
  std::fill(logits + count, logits + padded, LOWEST);
  __m512 highest[PANEL / LANES];
  for (auto& each : highest) each = _mm512_set1_ps(LOWEST);
  for (int64_t key = 0; key < padded; key += PANEL)
    for (int64_t v = 0; v < PANEL / LANES; ++v)
      highest[v] = _mm512_max_ps(highest[v], _mm512_loadu_ps(logits + key + v * LANES));
  return _mm512_reduce_max_ps(
      _mm512_max_ps(_mm512_max_ps(highest[0], highest[1]), _mm512_max_ps(highest[2], highest[3])));
}

// Weights of a row in bfloat16, 2 to the power of factor * (logit - highest); returns their sum.
float weigh_row(const float* logits, int64_t padded, float factor, float highest,
                bfloat16* weights) {
  const __m512 top = _mm512_set1_ps(highest == LOWEST ? 0.0f : highest);
  const __m512 unit = _mm512_set1_ps(factor);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t key = 0; key < padded; key += LANES) {
    const __m512 below = _mm512_sub_ps(_mm512_loadu_ps(logits + key), top);
    const __m512 weight = exp2_of(_mm512_mul_ps(below, unit));
    sum = _mm512_add_ps(sum, weight);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + key),
                        (__m256i)_mm512_cvtneps_pbh(weight));
  }
  return _mm512_reduce_add_ps(sum);
}

void scale_by(float* row, int64_t columns, float factor) {
  for (int64_t at = 0; at < columns; at += LANES)
    _mm512_storeu_ps(row + at, _mm512_mul_ps(_mm512_loadu_ps(row + at), _mm512_set1_ps(factor)));
}

void write_row(const float* row, float factor, int64_t width, bfloat16* to) {
  for (int64_t at = 0; at < width; at += LANES) {
    const __m512 value = _mm512_mul_ps(_mm512_loadu_ps(row + at), _mm512_set1_ps(factor));
    _mm256_mask_storeu_epi16(to + at, first_lanes(width - at), (__m256i)_mm512_cvtneps_pbh(value));
  }
}

float exp2_of(float x) { return _mm512_cvtss_f32(exp2_of(_mm512_set1_ps(x))); }

// What one thread works with; one piece of memory.
struct Room {
  uint32_t *keys, *values;
  float *logits, *sums;
  bfloat16* weights;
  void* memory;

  Room(const Sizes& sizes, int64_t columns) {
    const int64_t padded = rounded_up(sizes.keys, PANEL);
    const int64_t block = std::min(KEYS, padded);
    const int64_t bytes[] = {padded * sizes.width * 2, padded * columns * 2, QUERIES * block * 4,
                             QUERIES * columns * 4, QUERIES * block * 2};
    int64_t total = 0;
    for (int64_t each : bytes) total += rounded_up(each, 64);
    memory = std::aligned_alloc(64, total);
    if (memory == nullptr) return;
    char* at = static_cast<char*>(memory);
    const auto next = [&](int64_t size) {
      char* const piece = at;
      at += rounded_up(size, 64);
      return piece;
    };
    keys = reinterpret_cast<uint32_t*>(next(bytes[0]));
    values = reinterpret_cast<uint32_t*>(next(bytes[1]));
    logits = reinterpret_cast<float*>(next(bytes[2]));
    sums = reinterpret_cast<float*>(next(bytes[3]));
    weights = reinterpret_cast<bfloat16*>(next(bytes[4]));
  }
  Room(const Room&) = delete;
  ~Room() { std::free(memory); }
};

// `count` queries of one head against all of its keys, which are laid out in `room`.
void attend(const Room& room, const Sizes& sizes, int64_t columns, int64_t count, float scale,
            const bfloat16* query, int64_t query_stride, Mask mask, int64_t mask_stride,
            bfloat16* out, int64_t out_stride) {
  float highest[QUERIES], total[QUERIES];
  std::fill_n(highest, count, LOWEST);
  std::fill_n(total, count, 0.0f);
  const int64_t pairs = sizes.width / 2;
  const bool plain = mask.type == MaskType::none && scale > 0;  // then the highest stays highest
  const float factor = plain ? scale * LOG2_E : 1.0f;
  for (int64_t first = 0; first < sizes.keys; first += KEYS) {
    const int64_t block = std::min(KEYS, sizes.keys - first);
    const int64_t padded = rounded_up(block, PANEL);
    for (int64_t key = 0; key < padded; key += PANEL)
      multiply(count, PANEL, query, query_stride, room.keys + (first + key) * pairs, PANEL, pairs,
               room.logits + key, padded, false);
    for (int64_t row = 0; row < count; ++row) {
      float* const logits = room.logits + row * padded;
      const float here =
          plain ? highest_of(logits, block, padded)
                : scale_row(logits, block, padded, scale, mask.from(row * mask_stride + first));
      const float top = std::max(highest[row], here);
      const float kept = top == LOWEST ? 1.0f : exp2_of(factor * (highest[row] - top));
      total[row] =
          total[row] * kept + weigh_row(logits, padded, factor, top, room.weights + row * padded);
      if (first > 0 && kept != 1.0f) scale_by(room.sums + row * columns, columns, kept);
      highest[row] = top;
    }
    multiply(count, columns, room.weights, padded, room.values + first / 2 * columns, columns,
             padded / 2, room.sums, columns, first > 0);
  }
  for (int64_t row = 0; row < count; ++row)
    write_row(room.sums + row * columns, total[row] == 0.0f ? 0.0f : 1.0f / total[row], sizes.width,
              out + row * out_stride);
}

}  // namespace

// Strides are those of query, key, value, result and mask. Returns 1 if there is no memory, else 0.
extern "C" int ditc_attention(const bfloat16* query, const bfloat16* key, const bfloat16* value,
                              bfloat16* out, const char* mask_data, int mask_type,
                              const Sizes* given, const Strides* strides, float scale,
                              int threads) {
  const Sizes sizes = *given;
  const auto& [q, k, v, o, m] = *reinterpret_cast<const Strides(*)[5]>(strides);
  const Mask mask{mask_data, static_cast<MaskType>(mask_type)};
  const int64_t columns = rounded_up(sizes.width, LANES);
  const int64_t padded = rounded_up(sizes.keys, PANEL);
  const int64_t blocks = (sizes.queries + QUERIES - 1) / QUERIES;
  const int64_t heads = sizes.batch * sizes.heads;
  // Threads take whole heads if that is even, else parts of them, and lay the keys out for each.
  const int64_t parts =
      std::min(blocks, heads % threads == 0 ? 1 : (2 * threads + heads - 1) / heads);
  int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
  {
    const Room room(sizes, columns);
    failed = room.memory == nullptr;
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < heads * parts; ++task) {
      if (failed) continue;
      const int64_t part = task % parts;
      const int64_t sample = task / parts / sizes.heads, head = task / parts % sizes.heads;
      const int64_t key_head = head / (sizes.heads / sizes.key_heads);
      pack_keys(key + sample * k.sample + key_head * k.head, k.token, sizes.keys, sizes.width,
                room.keys);
      pack_values(value + sample * v.sample + key_head * v.head, v.token, sizes.keys, padded,
                  sizes.width, columns, room.values);
      for (int64_t block = blocks * part / parts; block < blocks * (part + 1) / parts; ++block) {
        const int64_t first = block * QUERIES;
        const auto at = [&](const Strides& stride) {
          return sample * stride.sample + head * stride.head + first * stride.token;
        };
        attend(room, sizes, columns, std::min(QUERIES, sizes.queries - first), scale, query + at(q),
               q.token, mask.from(at(m)), m.token, out + at(o), o.token);
      }
    }
  }
  return failed;
}
