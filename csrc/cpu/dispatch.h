// Chooses the tier of the CPU kernels at run time, on the exact features a tier uses.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace pydstp {

// Tiers that this build holds and this machine can run, best first; test-only twins come last and
// are never chosen on their own.
std::vector<std::string> available_tiers();

std::string current_tier();

// Makes a tier current for the whole process; "" means the best. False if it is not available.
bool set_tier(const std::string& name);

// For tests, in builds with simt twins: the order in which they run blocks and threads.
void set_simt_seed(uint64_t seed);

// The instruction set features that decide, by name.
std::vector<std::pair<std::string, bool>> cpu_features();

}  // namespace pydstp
