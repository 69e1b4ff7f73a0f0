// What the files of the driver share.
#pragma once

#include <cstdint>
#include <vector>

#include "../dispatch.h"

void expect(bool ok, const secateur::KernelTable& table, const char* kernel, size_t n, const char* what);
uint64_t random_bits();

void test_solvers(const secateur::KernelTable& table);
void test_spmm(const secateur::KernelTable& table);
