// The sparse matrices on every instruction set, through the checks and the walk over chunks and K-blocks, against a
// triple loop in double. The packing here is the plainest that the layouts allow; the real one is tested from Python.
#include "driver.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "../program/linear.h"
#include "../program/panel.h"
#include "../spmm/packed.h"

using secateur::KernelTable;
using secateur::Packed;
using secateur::Shape;

namespace {

struct Matrix {
  size_t rows, cols;
  std::vector<float> weight;
  std::vector<uint8_t> kept;
  bool keeps(size_t r, size_t c) const { return r < rows && kept[r * cols + c] != 0; }
};

// Bytes, since counts and indices have 1, 2 or 4 of them.
struct Stream {
  std::vector<uint8_t> bytes;
  void put(size_t value, size_t size) {
    for (size_t i = 0; i < size; ++i) bytes.push_back(uint8_t(value >> (8 * i)));
  }
};

struct Streams {
  Stream counts, index;
  std::vector<float> values;
};

// Of a column inside its K-block, which begins with a whole run.
size_t place(size_t c, size_t begin) { return secateur::panel::row_of(c) - secateur::panel::row_of(begin); }

// One K-block [begin, end) of the rows [first, last).
void pack_rows(const Matrix& m, const Shape& s, size_t first, size_t last, size_t begin, size_t end, Streams& out) {
  for (size_t r = first; r < last; r += 4) {
    for (unsigned pattern = 1; pattern < 16; ++pattern) {
      size_t n = 0;
      for (size_t c = begin; c < end; ++c) {
        unsigned found = 0;
        for (size_t i = 0; i < 4; ++i) found |= unsigned(r + i < last && m.keeps(r + i, c)) << i;
        if (found != pattern) continue;
        ++n;
        out.index.put(place(c, begin), s.bits / 8);
        for (size_t i = 0; i < 4; ++i) {
          if (pattern >> i & 1) out.values.push_back(m.weight[(r + i) * m.cols + c]);
        }
      }
      out.counts.put(n, s.bits / 8);
    }
  }
}

// Rows in reverse order, four at a time, so that their names matter.
void pack_even(const Matrix& m, const Shape& s, size_t first, size_t last, size_t begin, size_t end, Streams& out) {
  const size_t rows = (last - first + 3) / 4 * 4;
  for (size_t group = 0; group < rows; group += 4) {
    std::vector<size_t> columns[4];
    size_t steps = 0;
    for (size_t i = 0; i < 4; ++i) {
      const size_t r = first + rows - 1 - (group + i);
      for (size_t c = begin; c < end && r < last; ++c) {
        if (m.keeps(r, c)) columns[i].push_back(c);
      }
      steps = columns[i].size() > steps ? columns[i].size() : steps;
    }
    out.counts.put(steps, 2);
    for (size_t i = 0; i < 4; ++i) out.counts.put(place(rows - 1 - (group + i), 0), 2);
    for (size_t step = 0; step < steps; ++step) {
      for (size_t i = 0; i < 4; ++i) {
        const bool there = step < columns[i].size();
        const size_t nothing = secateur::panel::columns(end - begin) - 1;
        out.index.put(there ? place(columns[i][step], begin) : nothing, s.bits / 8);
        const size_t r = first + rows - 1 - (group + i);
        out.values.push_back(there ? m.weight[r * m.cols + columns[i][step]] : 0.0f);
      }
    }
  }
}

void pack_blocks(const Matrix& m, const Shape& s, size_t first, size_t last, size_t begin, size_t end, Streams& out) {
  for (size_t r = first; r < last; r += s.unit) {
    size_t n = 0;
    for (size_t c = begin; c < end; ++c) {
      if (!m.keeps(r, c)) continue;
      ++n;
      out.index.put(place(c, begin), s.bits / 8);
      for (size_t i = 0; i < s.unit; ++i) out.values.push_back(r + i < last ? m.weight[(r + i) * m.cols + c] : 0.0f);
    }
    out.counts.put(n, s.bits / 8);
  }
}

constexpr size_t nm_each = 4;  // of 16: 2 of 8

// A record per row of a lane and column: its first step has the weights, of later ones every lane takes no part.
void pack_ell(const Matrix& m, const Shape& s, size_t first, size_t last, size_t begin, size_t end, Streams& out) {
  for (size_t r = first; r < last; r += s.unit) {
    for (size_t half = 0; half < s.unit; half += 16) {
      for (size_t c = begin; c < end; ++c) {
        const size_t at = place(c, begin), base = at < 50 ? 0 : at - 50;
        for (size_t i = 0; i < s.unit / 16; ++i) out.index.put(base, 2);
        for (size_t i = 0; i < 16; ++i) {
          const size_t row = r + half + i;
          const bool there = row < last && m.keeps(row, c);
          out.index.put(there ? at - base + 4 * half : 63, 1);
          for (size_t step = 1; step < 4; ++step) out.index.put(63, 1);
          out.values.push_back(there ? m.weight[row * m.cols + c] : 0.0f);
        }
        out.values.resize(out.values.size() + 48);
      }
    }
    out.counts.put((end - begin) * s.unit / 16, 4);
  }
}

// The places of a window stand in rising order; of a window of less than 16 the zero behind it fills up.
void pack_nm(const Matrix& m, const Shape&, size_t first, size_t last, size_t begin, size_t end, Streams& out) {
  const size_t windows = (end - begin + 15) / 16;
  for (size_t r = first; r < last; r += 16) {
    std::vector<uint32_t> words((windows * nm_each + 7) / 8 * 16);
    for (size_t window = 0; window < windows; ++window) {
      const size_t left = begin + 16 * window, right = left + 16 < end ? left + 16 : end;
      for (size_t k = 0; k < nm_each; ++k) {
        for (size_t i = 0; i < 16; ++i) {
          size_t skip = k, c = left;
          while (r + i < last && c < right && (!m.keeps(r + i, c) || skip-- > 0)) ++c;
          const size_t step = window * nm_each + k;
          words[step / 8 * 16 + i] |= uint32_t(c - left) << 4 * (step % 8);
          out.values.push_back(r + i < last && c < right ? m.weight[(r + i) * m.cols + c] : 0.0f);
        }
      }
    }
    for (uint32_t word : words) out.index.put(word, 4);
    out.counts.put(nm_each, 2);
    out.counts.put(windows, 2);
  }
}

Streams pack(const Matrix& m, const Shape& s) {
  Streams out;
  for (size_t first = 0; first < m.rows; first += s.chunk) {
    const size_t last = first + s.chunk < m.rows ? first + s.chunk : m.rows;
    for (size_t begin = 0; begin == 0 || begin < m.cols; begin += s.block) {
      const size_t end = begin + s.block < m.cols ? begin + s.block : m.cols;
      if (s.layout == "rows") pack_rows(m, s, first, last, begin, end, out);
      if (s.layout == "even") pack_even(m, s, first, last, begin, end, out);
      if (s.layout == "csr" || s.layout == "blocks") pack_blocks(m, s, first, last, begin, end, out);
      if (s.layout == "ell") pack_ell(m, s, first, last, begin, end, out);
      if (s.layout == "nm") pack_nm(m, s, first, last, begin, end, out);
    }
  }
  return out;
}

secateur::Streams view(const Streams& streams) {
  return {streams.counts.bytes.data(), streams.counts.bytes.size(), streams.index.bytes.data(),
          streams.index.bytes.size(), streams.values.data(),        streams.values.size()};
}

float random_float() { return float(int64_t(random_bits() % 2001) - 1000) / 500.0f; }

// Blocks of `unit` rows; the column in the middle is removed everywhere.
Matrix random_matrix(size_t rows, size_t cols, size_t unit, unsigned kept_of_10) {
  Matrix m{rows, cols, std::vector<float>(rows * cols), std::vector<uint8_t>(rows * cols)};
  for (size_t r = 0; r < rows; ++r) {
    for (size_t c = 0; c < cols; ++c) {
      m.weight[r * cols + c] = random_float();
      const size_t top = r / unit * unit;
      m.kept[r * cols + c] = r == top ? c != cols / 2 && random_bits() % 10 < kept_of_10 : m.kept[top * cols + c];
    }
  }
  return m;
}

// Of every 8 inputs the second and another one; of those that are left over at the end fewer.
void keep_2_of_8(Matrix& m) {
  for (size_t r = 0; r < m.rows; ++r) {
    for (size_t c = 0; c < m.cols; ++c) m.kept[r * m.cols + c] = c % 8 == 1 || c % 8 == 2 + (r + c / 8) % 5;
  }
}

double activated(double y, int activation) {
  switch (activation) {
    case secateur_relu: return y < 0 ? 0 : y;
    case secateur_gelu: return y / 2 * (1 + std::erf(y / std::sqrt(2.0)));
    case secateur_gelu_tanh: return y / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (y + 0.044715 * y * y * y)));
    case secateur_silu: return y / (1 + std::exp(-y));
    case secateur_leaky_tenth: return y < 0 ? y / 10 : y;
    case secateur_leaky_hundredth: return y < 0 ? y / 100 : y;
    case secateur_relu6: return y < 0 ? 0 : y > 6 ? 6 : y;
    case secateur_hardswish: return std::isinf(y) ? (y > 0 ? y : -0.0) : y * (y < -3 ? 0 : y > 3 ? 6 : y + 3) / 6;
  }
  return y;
}

// Where x is infinite a removed weight must not turn it to NaN.
void check(const KernelTable& table, const Shape& s, const Matrix& m, size_t n, int activation) {
  const Streams streams = pack(m, s);
  std::vector<float> x(n * m.cols), bias(m.rows), y(n * m.rows + 16, 12345.0f);
  for (float& value : x) value = random_float();
  for (float& value : bias) value = random_float();
  for (size_t i = 0; i < n && m.cols > 0; ++i) x[i * m.cols + m.cols / 2] = std::numeric_limits<float>::infinity();
  secateur::run_linear(std::make_shared<Packed>(table, s, view(streams)), x.data(), n, y.data(), bias.data(), activation);
  bool right = true;
  for (size_t i = 0; i < n; ++i) {
    for (size_t r = 0; r < m.rows; ++r) {
      double sum = bias[r];
      for (size_t c = 0; c < m.cols; ++c) {
        if (m.keeps(r, c)) sum += double(m.weight[r * m.cols + c]) * double(x[i * m.cols + c]);
      }
      right &= std::abs(activated(sum, activation) - double(y[i * m.rows + r])) < 1e-3;
    }
  }
  expect(right, table, s.layout.c_str(), n, "wrong product");
  bool inside = true;
  for (size_t i = n * m.rows; i < y.size(); ++i) inside &= y[i] == 12345.0f;
  expect(inside, table, s.layout.c_str(), n, "wrote outside");
}

// Damaged streams are refused before a kernel sees them.
void check_refused(const KernelTable& table, const Shape& s, const Matrix& m) {
  const Streams whole = pack(m, s);
  for (int damage = 0; damage < 5; ++damage) {
    if (damage == 3 && s.layout == "nm" && m.cols % 16 == 15) continue;  // every index of 4 bits is one
    Streams streams = whole;
    if (damage == 0) streams.counts.bytes.pop_back();
    if (damage == 1) streams.index.bytes.pop_back();
    if (damage == 2) streams.values.pop_back();
    if (damage == 3) std::memset(streams.index.bytes.data(), 0xff, streams.index.bytes.size());
    if (damage == 4) std::memset(streams.counts.bytes.data(), 0xff, streams.counts.bytes.size());
    bool refused = false;
    try {
      Packed(table, s, view(streams));
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    expect(refused, table, s.layout.c_str(), size_t(damage), "damaged streams were taken");
  }
}

}  // namespace

void test_spmm(const KernelTable& table) {
  const Shape shapes[] = {
      {"rows", 0, 0, 4, 96, 96, 8},     {"rows", 0, 0, 4, 192, 288, 16},  {"even", 0, 0, 4, 96, 192, 8},
      {"even", 0, 0, 4, 192, 288, 16},  {"csr", 0, 0, 1, 96, 96, 16},     {"csr", 0, 0, 1, 192, 288, 16},
      {"ell", 0, 0, 16, 96, 96, 16},    {"ell", 0, 0, 16, 192, 288, 16},  {"ell", 0, 0, 32, 96, 96, 16},
      {"ell", 0, 0, 32, 192, 288, 16},  {"blocks", 0, 0, 4, 96, 96, 8},   {"blocks", 0, 0, 8, 192, 192, 8},
      {"blocks", 0, 0, 16, 96, 96, 16}, {"blocks", 0, 0, 4, 192, 288, 16}, {"nm", 0, 0, 16, 96, 96, 16},
      {"nm", 0, 0, 16, 192, 288, 16}};
  for (Shape shape : shapes) {
    for (size_t rows : {1, 17, 65, 97}) {
      for (size_t cols : {0, 1, 63, 193}) {
        shape.rows = rows;
        shape.cols = cols;
        for (unsigned kept : {0u, 2u, 10u}) {
          Matrix m = random_matrix(rows, cols, shape.layout == "blocks" ? shape.unit : 1, kept);
          if (shape.layout == "nm") keep_2_of_8(m);
          for (size_t n : {0, 1, 3, 17, 65}) check(table, shape, m, n, int((rows + n) % secateur_activations));
          if (kept == 10 && cols > 1) check_refused(table, shape, m);
        }
      }
    }
  }
}
