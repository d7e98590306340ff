#include "parallel.h"

#include <pthread.h>

namespace fastdiff {
namespace {
bool in_child = false;
const int registered = pthread_atfork(nullptr, nullptr, [] { in_child = true; });
}  // namespace

bool forked() { return in_child; }

}  // namespace fastdiff
