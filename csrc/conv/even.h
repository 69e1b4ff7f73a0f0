// Four output channels in step: what an offset and a weight cost besides the products is shared by four of them.
#pragma once

#include "sparse.h"

namespace {

template <int L, int S, int V>
SECATEUR_INLINE void add_weighted(Vector<L> (&sums)[V], Vector<L> weight, const float* x) {
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) sums[v] += weight * load<L>(x + at<L, S>(v));
}

template <int L, int S, int V>
void even_of(const secateur_conv_stream& stream, const Part& part) {
  constexpr int R = 4;
  const uint16_t* counts = stream.counts;
  const uint16_t* offset = stream.offsets;
  const float* value = stream.values;
  const float* x = part.tile.x + part.column * S;
  const size_t shift = stream.shift, groups = stream.groups;
  const bool ahead = part.ahead;
  const Edge<L, V> edge(part);
  for (size_t group = 0; group < groups; ++group, counts += 1 + 2 * R) {
    if (ahead) fetch_ahead(part.tile.ahead, group, groups);
    if (group + 1 < groups) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) edge.fetch(counts[2 + 2 * R + 2 * r]);
    }
    Sums<L, R, V> sums;
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) edge.begin(sums.at[r], counts[1 + 2 * r]);
    for (const uint16_t* const end = offset + R * counts[0]; offset != end; offset += R, value += R) {
      uint64_t four;  // one load for all
      __builtin_memcpy(&four, offset, sizeof four);
      Vector<L> weights[R];
      splat4<L>(value, weights);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const size_t place = four >> 16 * (backwards ? R - 1 - r : r) & 0xffff;
        add_weighted<L, S, V>(sums.at[r], weights[r], x + (place << shift));
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      for (const uint16_t* const end = offset + counts[2 + 2 * r]; offset != end; ++offset, ++value) {
        add_weighted<L, S, V>(sums.at[r], splat<L>(*value), x + (size_t(*offset) << shift));
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) edge.end(sums.at[r], counts[1 + 2 * r]);
  }
}

struct Even {
  template <int L, int S, int R, int V>
  static SECATEUR_INLINE void run(const secateur_conv_stream& stream, const Part& part) {
    static_assert(R == 4, "four channels go in step");
    even_of<L, S, V>(stream, part);
  }
};

}  // namespace
