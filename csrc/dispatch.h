// Which kernels run on this machine.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace secateur {

enum class Isa {
#define SECATEUR_ISA(isa, architecture, flags, features) isa,
#include "kernels.def"
};

// One function per kernel: the table of one instruction set, filled up from those whose features it has too.
struct KernelTable {
  Isa isa;
  pack_fn* pack;
  unpack_fn* unpack;
  popcount_fn* popcount;
  apply_fn* apply2;
  apply_fn* apply4;
  apply_fn* apply8;
  nm_select_fn* nm_select;
  digits_fn* digits4;
  digits_fn* digits8;
  spmm_fn* spmm_rows8;
  spmm_fn* spmm_rows16;
  spmm_fn* spmm_even8;
  spmm_fn* spmm_even16;
  spmm_fn* spmm_csr;
  spmm_fn* spmm_blocks8;
  spmm_fn* spmm_blocks16;
  spmm_fn* spmv_ell;
  spmm_fn* spmv_nm;
  spmm_fn* spmv_csr;
  spmm_fn* spmv_blocks8;
  spmm_fn* spmv_blocks16;
  to_panel_fn* to_panel;
  from_panel_fn* from_panel;
  from_panel_past_fn* from_panel_past;
  finish_errand_fn* finish_errand;
  add_fn* add;
  layer_norm_fn* layer_norm;
  spmm_fn* bf16_spmm_rows8;
  spmm_fn* bf16_spmm_rows16;
  spmm_fn* bf16_spmm_even8;
  spmm_fn* bf16_spmm_even16;
  spmm_fn* bf16_spmm_csr;
  spmm_fn* bf16_spmm_blocks8;
  spmm_fn* bf16_spmm_blocks16;
  spmm_fn* bf16_spmv_ell;
  spmm_fn* bf16_spmv_csr;
  spmm_fn* bf16_spmv_blocks8;
  spmm_fn* bf16_spmv_blocks16;
  bf16_from_panel_fn* bf16_from_panel;
  bf16_from_samples_fn* bf16_from_samples;
  spmm_fn* int8_spmm_rows8;
  spmm_fn* int8_spmm_rows16;
  spmm_fn* int8_spmm_even8;
  spmm_fn* int8_spmm_even16;
  spmm_fn* int8_spmm_csr;
  spmm_fn* int8_spmm_blocks8;
  spmm_fn* int8_spmm_blocks16;
  spmm_fn* int8_spmv_ell;
  spmm_fn* int8_spmv_csr;
  spmm_fn* int8_spmv_blocks8;
  spmm_fn* int8_spmv_blocks16;
  int8_grid_of_panel_fn* int8_grid_of_panel;
  int8_grid_of_samples_fn* int8_grid_of_samples;
  int8_from_panel_fn* int8_from_panel;
  int8_from_samples_fn* int8_from_samples;
  conv_blocks_fn* conv_blocks;
  conv_rows_fn* conv_rows;
  conv_even_fn* conv_even;
  conv_gather_fn* conv_gather;
  conv_depthwise_fn* conv_depthwise;
  conv_pool_fn* conv_pool;
  conv_mean_fn* conv_mean;
  conv_pool_images_fn* conv_pool_images;
  conv_mean_images_fn* conv_mean_images;
  roof_fma_fn* roof_fma;
  roof_read_fn* roof_read;
  bf16_roof_fma_fn* bf16_roof_fma;
  refit_row_fn* refit_row;
  obs_columns_fn* obs_columns;
  obs_order_fn* obs_order;
};

// A line of kernels.def as this machine sees it.
struct IsaInfo {
  Isa isa;
  const char* name;
  const char* features;
  bool available;
};
struct KernelInfo {
  const char* kernel;
  Isa isa;
};

const std::vector<IsaInfo>& instruction_sets();
const std::vector<KernelInfo>& kernels();
const IsaInfo& info(Isa isa);

// The table of the named set. Throws std::runtime_error, listing what there is, if this machine cannot run it.
const KernelTable& table(const std::string& isa);

// The best available table, or the one that the environment variable SECATEUR_ISA names.
const KernelTable& choose();

}  // namespace secateur
