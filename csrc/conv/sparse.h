// The sparse convolution as templates over a vector of L floats. The sums of a group of output channels over V vectors
// of pixels live in registers while the weights stream by: a weight is broadcast once for V products.
// The anonymous namespace gives each including file its own copy, compiled with its own flags and never merged.
#pragma once

#include "sums.h"

namespace {

// Where vector v of a run of pixels begins; of 16 images side by side, a step of S takes every S-th pixel.
template <int L, int S>
constexpr size_t at(size_t v) {
  return S == 1 ? L * v : L * v / 16 * 16 * S + L * v % 16;
}

// Products of R output channels with the V vectors at x.
template <int L, int S, int R, int V>
SECATEUR_INLINE void add_products(Sums<L, R, V>& sums, const float* x, const float* values) {
  if constexpr (R == 1) {
    const Vector<L> weight = splat<L>(values[0]);
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sums.at[0][v] += weight * load<L>(x + at<L, S>(v));
  } else {
    Vector<L> weights[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) weights[r] = splat<L>(values[r]);
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      const Vector<L> pixels = load<L>(x + at<L, S>(v));
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sums.at[r][v] += weights[r] * pixels;
    }
  }
}

// A group's share of what is read next. All at once would wait for the memory.
SECATEUR_INLINE void fetch_ahead(const secateur_conv_ahead& ahead, size_t group, size_t groups) {
  const size_t each = (ahead.channels + groups - 1) / groups, begin = group * each;
  const size_t end = begin + each < ahead.channels ? begin + each : ahead.channels;
  for (size_t c = begin; c < end; ++c) {
    for (size_t r = 0; r < ahead.rows; ++r) {
      const float* from = ahead.x + c * ahead.stride + r * ahead.row;
      for (size_t i = 0; i < ahead.pixels; ++i) __builtin_prefetch(from + 16 * i, 0, 2);
    }
  }
}

template <int L, int S, int R, int V>
void blocks_of(const secateur_conv_stream& stream, const Part& part) {
  const uint16_t* counts = stream.counts;
  const uint16_t* offset = stream.offsets;
  const float* value = stream.values;
  const float* x = part.tile.x + part.column * S;
  const size_t shift = stream.shift, groups = stream.groups;
  const bool ahead = part.ahead;
  const Edge<L, V> edge(part);
  for (size_t group = 0; group < groups; ++group, counts += 2) {
    const size_t row = counts[0] * size_t(R), n = counts[1];
    if (ahead) fetch_ahead(part.tile.ahead, group, groups);
    if (group + 1 < groups) fetch<R>(edge, counts[2] * size_t(R));
    Sums<L, R, V> sums;
    begin(sums, edge, row);
    size_t i = 0;
    if constexpr (R * V < 4) {  // too few chains for the latency of an addition
      Sums<L, R, V> other{};
      for (; i + 2 <= n; i += 2) {
        add_products<L, S>(sums, x + (size_t(offset[i]) << shift), value + i * R);
        add_products<L, S>(other, x + (size_t(offset[i + 1]) << shift), value + i * R + R);
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) sums.at[r][v] += other.at[r][v];
      }
    }
    for (; i < n; ++i) add_products<L, S>(sums, x + (size_t(offset[i]) << shift), value + i * R);
    end(sums, edge, row);
    offset += n;
    value += n * R;
  }
}

// `n` offsets that all have pattern P.
template <int P, int S, int L, int R, int V>
SECATEUR_INLINE void run_pattern(Sums<L, R, V>& sums, size_t n, const float* x, size_t shift, const uint16_t*& offset,
                                 const float*& value) {
  constexpr int rows = (P & 1) + (P >> 1 & 1) + (P >> 2 & 1) + (P >> 3 & 1);
  for (const uint16_t* const end = offset + n; offset != end; ++offset, value += rows) {
    const float* pixels = x + (size_t(*offset) << shift);
    Vector<L> weights[rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) weights[r] = splat<L>(value[r]);
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      const Vector<L> loaded = load<L>(pixels + at<L, S>(v));
      int next = 0;
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        if (P >> r & 1) sums.at[r][v] += weights[next++] * loaded;
      }
    }
  }
}

template <int P, int S, int L, int R, int V>
SECATEUR_INLINE void run_patterns(Sums<L, R, V>& sums, const uint16_t* counts, const float* x, size_t shift,
                                  const uint16_t*& offset, const float*& value) {
  if constexpr (P < 1 << R) {
    run_pattern<P, S>(sums, counts[P - 1], x, shift, offset, value);
    run_patterns<P + 1, S>(sums, counts, x, shift, offset, value);
  }
}

template <int L, int S, int R, int V>
void rows_of(const secateur_conv_stream& stream, const Part& part) {
  const uint16_t* counts = stream.counts;
  const uint16_t* offset = stream.offsets;
  const float* value = stream.values;
  const float* x = part.tile.x + part.column * S;
  const size_t shift = stream.shift, groups = stream.groups;
  const bool ahead = part.ahead;
  const Edge<L, V> edge(part);
  for (size_t group = 0; group < groups; ++group, counts += 1 << R) {
    const size_t row = counts[0] * size_t(R);
    if (ahead) fetch_ahead(part.tile.ahead, group, groups);
    if (group + 1 < groups) fetch<R>(edge, counts[1 << R] * size_t(R));
    Sums<L, R, V> sums;
    begin(sums, edge, row);
    run_patterns<1, S>(sums, counts + 1, x, shift, offset, value);
    end(sums, edge, row);
  }
}

struct Blocks {
  template <int L, int S, int R, int V>
  static SECATEUR_INLINE void run(const secateur_conv_stream& stream, const Part& part) {
    blocks_of<L, S, R, V>(stream, part);
  }
};

struct Rows {
  template <int L, int S, int R, int V>
  static SECATEUR_INLINE void run(const secateur_conv_stream& stream, const Part& part) {
    rows_of<L, S, R, V>(stream, part);
  }
};

template <typename Kernel, int L, int S, int R, int V, int LESS>
SECATEUR_INLINE void run_part(const secateur_conv_stream& stream, const Part& part, size_t vectors) {
  if constexpr (V > 0) {
    if (vectors == size_t(V)) return Kernel::template run<L, S, R, V>(stream, part);
    run_part<Kernel, L, S, R, V - LESS, LESS>(stream, part, vectors);
  }
}

// A tile as parts that fit the registers, as equal as can be; each part reads the weights anew. A part has a multiple of
// UNIT vectors of the hardware.
template <typename Kernel, int L, int S, int R, int MOST, int UNIT>
void run_tile(const secateur_conv_stream* stream, const secateur_conv_tile* tile) {
  constexpr size_t most = MOST < UNIT ? 1 : MOST / UNIT;
  const size_t width = tile->vectors * tile->lanes, total = width / (L * UNIT);
  size_t parts = (total + most - 1) / most;
  for (size_t at = 0; at < total; --parts) {
    const size_t units = (total - at + parts - 1) / parts;
    run_part<Kernel, L, S, R, int(most) * UNIT, UNIT>(*stream, {*tile, at * L * UNIT, width, at == 0 && tile->ahead.x != nullptr}, units * UNIT);
    at += units;
  }
  if (tile->past) after_past();
}

template <typename Kernel, int L, int R, int MOST>
SECATEUR_INLINE void run_steps(const secateur_conv_stream* stream, const secateur_conv_tile* tile) {
  if constexpr (MOST > 0) {
    if (stream->step == 2) return run_tile<Kernel, L, 2, R, MOST, 16 / L>(stream, tile);
    run_tile<Kernel, L, 1, R, MOST, 1>(stream, tile);
  }
}

template <typename Kernel, int L, int ONE, int TWO, int FOUR>
SECATEUR_INLINE void run_units(const secateur_conv_stream* stream, const secateur_conv_tile* tile) {
  switch (stream->unit) {
    case 1: return run_steps<Kernel, L, 1, ONE>(stream, tile);
    case 2: return run_steps<Kernel, L, 2, TWO>(stream, tile);
    case 4: return run_steps<Kernel, L, 4, FOUR>(stream, tile);
  }
}

}  // namespace
