// The limits of the RPC service. All memory that one client can make us hold follows from them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sluice::rpc {

inline constexpr size_t kMaxRequestBytes = 1 << 20;          // one JSON value: a request or a batch
inline constexpr size_t kMaxNesting = 64;                    // arrays and objects within each other
inline constexpr size_t kMaxBatchRequests = 1024;            // requests in a batch
inline constexpr size_t kMaxBatchReplyBytes = 64 << 20;      // where a batch stops being executed
inline constexpr size_t kMaxClients = 256;                   // connections at a time
inline constexpr size_t kReadChunkBytes = 64 << 10;          // read from a client at a time
inline constexpr uint64_t kWriteTimeoutNs = 30'000'000'000;  // a client that takes nothing for so long is dropped
inline constexpr uint64_t kAcceptRetryNs = 100'000'000;      // between attempts while descriptors are short
inline constexpr size_t kMaxConfigBytes = 64 << 20;          // a configuration file
inline constexpr uint64_t kStateRoomOfCall = 2048;           // taken in the state's file before a call runs,
inline constexpr uint64_t kStateRoomFactor = 2;              // and so much for each byte of its parameters
inline constexpr uint64_t kStateCompactBytes = 1 << 20;      // the state's file is written anew when it is longer,
inline constexpr uint64_t kStateCompactFactor = 4;           // and so much longer than when it was written last

static_assert(kReadChunkBytes <= kMaxRequestBytes);

}  // namespace sluice::rpc
