#include "machine.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <thread>
#include <vector>

namespace secateur {
namespace {

#if defined(__linux__)

bool lists(const std::string& words, const std::string& wanted) {
  std::istringstream stream{words};
  for (std::string word; std::getline(stream, word, ',');) {
    if (word == wanted) return true;
  }
  return false;
}

// Where the files of one hierarchy lie, and whether it is of version 2.
struct Mount {
  std::string group;  // the control group that is mounted there; containers see a part of the tree
  std::string folder;
  bool unified;
};

// Lines such as `32 31 0:29 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu`.
std::vector<Mount> find_mounts(const std::string& root) {
  std::vector<Mount> found;
  std::ifstream file(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream before{line.substr(0, dash)}, after{line.substr(dash + 3)};
    std::string id, parent, device, type, source, options;
    Mount mount;
    before >> id >> parent >> device >> mount.group >> mount.folder;
    after >> type >> source >> options;
    mount.unified = type == "cgroup2";
    if (mount.unified || (type == "cgroup" && lists(options, "cpu"))) found.push_back(mount);
  }
  return found;
}

// The control group of this process. Lines such as `0::/user` (version 2) and `3:cpu,cpuacct:/user`.
std::string own_group(const std::string& root, bool unified) {
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first == std::string::npos ? first : first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (unified ? controllers.empty() : lists(controllers, "cpu")) return line.substr(second + 1);
  }
  return "/";
}

size_t rounded_up(double quota, double period) {
  if (!(quota > 0) || !(period > 0)) return 0;  // -1 and "max": no limit
  return static_cast<size_t>((quota + period - 1) / period);
}

size_t quota_of(const std::string& folder, bool unified) {
  std::string quota = "0", period = "0";
  if (unified) {
    std::ifstream(folder + "/cpu.max") >> quota >> period;
    if (quota == "max") return 0;
  } else {
    std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;
    std::ifstream(folder + "/cpu.cfs_period_us") >> period;
  }
  return rounded_up(std::atof(quota.c_str()), std::atof(period.c_str()));
}

size_t allowed_processors() {
  // Machines with more than 1024 processors need a larger set; the call says so by failing.
  for (int most = CPU_SETSIZE; most <= 1 << 20; most *= 2) {
    cpu_set_t* set = CPU_ALLOC(most);
    const size_t bytes = CPU_ALLOC_SIZE(most);
    const bool ok = set != nullptr && sched_getaffinity(0, bytes, set) == 0;
    const size_t count = ok ? static_cast<size_t>(CPU_COUNT_S(bytes, set)) : 0;
    CPU_FREE(set);
    if (ok) return count;
  }
  return 0;
}

#endif

}  // namespace

size_t quota_threads(const std::string& root) {
  size_t least = 0;
#if defined(__linux__)
  for (const Mount& mount : find_mounts(root)) {
    std::string group = own_group(root, mount.unified);
    if (mount.group != "/" && (group + "/").compare(0, mount.group.size() + 1, mount.group + "/") == 0) {
      group.erase(0, mount.group.size());
    }
    if (group == "/") group.clear();
    // The group and all above it limit; a group that the mount does not show leaves those above.
    while (true) {
      const size_t quota = quota_of(root + mount.folder + group, mount.unified);
      if (quota > 0 && (least == 0 || quota < least)) least = quota;
      if (group.empty()) break;
      group.erase(group.rfind('/') == std::string::npos ? 0 : group.rfind('/'));
    }
  }
#endif
  return least;
}

size_t usable_threads() {
  constexpr size_t unknown = ~size_t(0);
  // Reading it takes longer than a small program. No local static with an initialiser: see pool.cpp.
  static std::atomic<size_t> kept{unknown};
  size_t quota = kept.load(std::memory_order_relaxed);
  if (quota == unknown) kept.store(quota = quota_threads(), std::memory_order_relaxed);
  size_t least = std::max(1u, std::thread::hardware_concurrency());
#if defined(__linux__)
  if (const size_t allowed = allowed_processors()) least = std::min(least, allowed);
#endif
  if (quota > 0) least = std::min(least, quota);
  return least;
}

}  // namespace secateur
