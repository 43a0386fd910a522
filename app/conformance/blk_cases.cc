// Block requests: every type, any layout, and each limit on both sides.
#include "app/conformance/target_fixture.h"

namespace sluice::test {
namespace {

using ::testing::AnyOf;
using vhost::BlkDiscardSegment;
using vhost::BlkRequestType;
using vhost::BlkStatus;
using vhost::kSectorSize;

class VhostBlk : public TargetFixture {
 public:
  explicit VhostBlk(TargetOptions options = {}) : TargetFixture(options) {}
  void start(SessionOptions options = {}) {
    session_ = running(std::move(options));
    ASSERT_FALSE(HasFailure());
  }
  BlkDriver& blk(size_t i = 0) { return session_->blk(i); }
  uint64_t capacity() const { return session_->config().capacity; }
  // The status of a request that is complete, in time, intact and with a sensible length.
  BlkStatus status(const Exchange& exchange) {
    auto outcome = blk().run(exchange);
    EXPECT_TRUE(outcome) << "not completed";
    if (!outcome) return BlkStatus{0xff};
    EXPECT_TRUE(outcome->intact) << "memory outside the writable descriptors was changed";
    // used.len promises that so many bytes from the first writable one on were written: none, if only the status was.
    if (outcome->status() == BlkStatus::kOk) EXPECT_GE(outcome->used_len, 1U);
    EXPECT_LE(outcome->used_len, exchange.writable_size);
    return outcome->status();
  }
  BlkStatus discard(std::vector<BlkDiscardSegment> segments) {
    return status(segments_request(BlkRequestType::kDiscard, segments));
  }
  BlkStatus write_zeroes(std::vector<BlkDiscardSegment> segments) {
    return status(segments_request(BlkRequestType::kWriteZeroes, segments));
  }

 protected:
  std::unique_ptr<Session> session_;
};

// ---- Reading and writing

CASE(VhostBlk, ReadsBackWhatWasWritten, "virtio 1.2, 5.2.6 Device Operation") {
  start();
  for (size_t size : {512U, 1024U, 4096U, 65536U, 262144U}) {
    Bytes data = pattern(size, static_cast<uint32_t>(size));
    ASSERT_EQ(blk().write(3, data), BlkStatus::kOk) << size;
    Bytes back(size);
    ASSERT_EQ(blk().read(3, back), BlkStatus::kOk) << size;
    EXPECT_TRUE(back == data) << size;
  }
}

CASE(VhostBlk, ReachesTheLastSectorAndNoFurther, "virtio 1.2, 5.2.4 Device configuration layout: capacity") {
  start();
  Bytes data = pattern(512, 8), back(512);
  EXPECT_EQ(blk().write(capacity() - 1, data), BlkStatus::kOk);
  EXPECT_EQ(blk().read(capacity() - 1, back), BlkStatus::kOk);
  EXPECT_TRUE(back == data);
  for (uint64_t sector : {capacity(), capacity() + 1, uint64_t{1} << 55, uint64_t{1} << 63, ~uint64_t{0}}) {
    EXPECT_EQ(status(read_request(sector, 512)), BlkStatus::kIoErr) << sector;
    EXPECT_EQ(status(write_request(sector, data)), BlkStatus::kIoErr) << sector;
  }
  EXPECT_EQ(status(read_request(capacity() - 1, 1024)), BlkStatus::kIoErr) << "over the end";
  EXPECT_EQ(status(write_request(capacity() - 7, Bytes(4096))), BlkStatus::kIoErr) << "over the end";
  EXPECT_EQ(status(read_request(~uint64_t{0}, 1024)), BlkStatus::kIoErr) << "sector plus length wraps";
  EXPECT_EQ(blk().read(capacity() - 1, back), BlkStatus::kOk);
  EXPECT_TRUE(back == data) << "a request over the end wrote its beginning";
}

// "Device Operation": data is a multiple of 512 bytes.
CASE(VhostBlk, RefusesPartsOfSectors,
     "practice: a driver that breaks virtio 1.2, 5.2.6.1: data is a multiple of 512 bytes") {
  start();
  for (size_t size : {1U, 511U, 513U, 4095U}) {
    EXPECT_EQ(status(read_request(0, size)), BlkStatus::kIoErr) << size;
    EXPECT_EQ(status(write_request(0, Bytes(size))), BlkStatus::kIoErr) << size;
  }
}

// ---- "Message Framing": "the device MUST NOT make assumptions about the particular arrangement of descriptors"

struct Layout {
  const char* name;
  std::vector<uint32_t> readable, writable;
};

class VhostBlkLayout : public VhostBlk, public ::testing::WithParamInterface<Layout> {};

const Layout kLayouts[] = {
    {"Classic", {}, {}},
    {"HeaderSplitOneAndFifteen", {1, 15}, {}},
    {"HeaderSplitFifteenAndOne", {15, 1}, {}},
    {"HeaderInSixteenPieces", std::vector<uint32_t>(16, 1), {}},
    {"HeaderSharesDescriptorWithData", {16 + 512}, {}},
    {"HeaderEndsInsideDataDescriptor", {10, 6 + 100}, {}},
    {"AllReadableInOne", {1 << 20}, {}},
    {"StatusSharesDescriptorWithData", {}, {1 << 20}},
    {"AllInTwo", {1 << 20}, {1 << 20}},
    {"DataInOddPieces", {16, 1, 511, 3, 1021, 513}, {1, 511, 3, 1021, 513}},
    {"DataInManySectors", {16, 512, 512, 512, 512, 512, 512, 512}, {512, 512, 512, 512, 512, 512, 512}},
    {"LastByteOfDataWithStatus", {}, {4095}},
};

INSTANTIATE_TEST_SUITE_P(Layouts, VhostBlkLayout, ::testing::ValuesIn(kLayouts),
                         [](const auto& info) { return std::string(info.param.name); });

CASE_P(VhostBlkLayout, ReadsAndWrites, "virtio 1.2, 2.7.4.1 Device Requirements: Message Framing") {
  start();
  Bytes data = pattern(4096, 11);
  for (bool indirect : {false, true}) {
    if (indirect && !session_->has(vhost::kFeatureIndirectDesc)) continue;
    Exchange write = write_request(20, data);
    write.readable_split = GetParam().readable;
    write.indirect = indirect;
    ASSERT_EQ(status(write), BlkStatus::kOk);
    Bytes back(data.size());
    ASSERT_EQ(blk().read(20, back), BlkStatus::kOk);
    EXPECT_TRUE(back == data) << "written wrongly";
    Exchange read = read_request(20, data.size());
    read.readable_split = GetParam().readable;
    read.writable_split = GetParam().writable;
    read.indirect = indirect;
    auto outcome = blk().run(read);
    ASSERT_TRUE(outcome);
    EXPECT_EQ(outcome->status(), BlkStatus::kOk);
    EXPECT_TRUE(outcome->data() == data) << "read wrongly";
    EXPECT_EQ(outcome->used_len, data.size() + 1);
    EXPECT_TRUE(outcome->intact);
  }
}

// One sector and the status byte in one descriptor of 513 bytes.
CASE(VhostBlk, ReadsIntoADescriptorOf513Bytes, "virtio 1.2, 2.7.4.1 Device Requirements: Message Framing") {
  start();
  Bytes data = pattern(512, 12);
  ASSERT_EQ(blk().write(1, data), BlkStatus::kOk);
  Exchange read = read_request(1, 512);
  read.writable_split = {513};
  auto outcome = blk().run(read);
  ASSERT_TRUE(outcome);
  EXPECT_EQ(outcome->status(), BlkStatus::kOk);
  EXPECT_TRUE(outcome->data() == data);
  EXPECT_EQ(outcome->used_len, 513U);
}

// As many data segments as seg_max promises.
CASE(VhostBlk, TakesAsManySegmentsAsItPromises, "virtio 1.2, 5.2.4 Device configuration layout: seg_max") {
  start();
  SKIP_UNLESS(session_->has(vhost::kBlkFeatureSegMax));
  SKIP_UNLESS(session_->has(vhost::kFeatureIndirectDesc));
  uint32_t segments = std::min(session_->config().seg_max, 1024U);
  Bytes data = pattern(segments * size_t{512}, 13);
  Exchange write = write_request(0, data);
  write.indirect = true;
  for (uint32_t i = 0; i < segments; i++) write.readable_split.push_back(512);
  write.readable_split.insert(write.readable_split.begin(), 16);
  ASSERT_EQ(status(write), BlkStatus::kOk);
  Exchange read = read_request(0, data.size());
  read.indirect = true;
  read.writable_split.assign(segments, 512);
  auto outcome = blk().run(read);
  ASSERT_TRUE(outcome);
  EXPECT_EQ(outcome->status(), BlkStatus::kOk);
  EXPECT_TRUE(outcome->data() == data);
}

// ---- Malformed requests that still have a status byte

CASE(VhostBlk, FailsARequestWithAnIncompleteHeader,
     "practice: a driver that breaks virtio 1.2, 5.2.6 Device Operation") {
  start({.num_queues = 2});
  for (size_t size : {1U, 8U, 15U}) {
    Exchange broken{.readable = Bytes(size), .writable_size = 513};
    auto outcome = blk().run(broken, kQuietMs);
    if (outcome) {
      EXPECT_NE(outcome->status(), BlkStatus::kOk) << size;
    } else {
      break;  // the queue has stopped, which is a fair answer too
    }
  }
  expect_io_works(*session_, 1);
}

// No byte for the status: the chain comes back empty, or the queue stops.
CASE(VhostBlk, SurvivesARequestWithoutAnyWritableByte,
     "practice: a driver that breaks virtio 1.2, 5.2.6 Device Operation") {
  start({.num_queues = 2});
  Exchange broken = write_request(0, Bytes(512));
  broken.writable_size = 0;
  auto outcome = blk().run(broken, kQuietMs);
  if (outcome) EXPECT_EQ(outcome->used_len, 0U);
  expect_io_works(*session_, 1);
}

// ---- Flush

CASE(VhostBlk, Flushes, "virtio 1.2, 5.2.6.2 Device Requirements: Device Operation") {
  start();
  SKIP_UNLESS(session_->has(vhost::kBlkFeatureFlush));
  EXPECT_EQ(status(flush_request()), BlkStatus::kOk);
  EXPECT_EQ(status(write_request(8, pattern(4096, 31))), BlkStatus::kOk);
  EXPECT_EQ(status(flush_request()), BlkStatus::kOk);
}

// ---- GET_ID

CASE(VhostBlk, TellsItsIdInTwentyBytes, "virtio 1.2, 5.2.6 Device Operation: VIRTIO_BLK_T_GET_ID") {
  start();
  auto outcome = blk().run(get_id_request());
  ASSERT_TRUE(outcome);
  EXPECT_EQ(outcome->status(), BlkStatus::kOk);
  EXPECT_EQ(outcome->used_len, vhost::kBlkIdSize + 1);
  Bytes id = outcome->data();
  auto end = std::find(id.begin(), id.end(), uint8_t{0});
  EXPECT_NE(end, id.begin()) << "no id";
  EXPECT_TRUE(std::all_of(end, id.end(), [](uint8_t byte) { return byte == 0; })) << "not padded with zeros";
}

// A buffer of another size: no more is written than there is room for.
CASE(VhostBlk, TellsItsIdIntoOtherBuffers,
     "practice: a driver that breaks virtio 1.2, 5.2.6 Device Operation: VIRTIO_BLK_T_GET_ID") {
  start();
  for (size_t size : {4U, 19U, 21U, 512U}) {
    auto outcome = blk().run(get_id_request(size));
    ASSERT_TRUE(outcome) << size;
    EXPECT_TRUE(outcome->intact) << size;
    EXPECT_LE(outcome->used_len, size + 1);
    EXPECT_THAT(outcome->status(), AnyOf(BlkStatus::kOk, BlkStatus::kIoErr)) << size;
  }
}

// ---- Unknown types

CASE(VhostBlk, AnswersUnknownTypesAsUnsupported, "virtio 1.2, 5.2.6 Device Operation: VIRTIO_BLK_S_UNSUPP") {
  start();
  for (uint32_t type : {2U, 3U, 5U, 9U, 12U, 99U, 0x100U, 0x1'0000U, 0x7fff'ffffU, 0xffff'ffffU}) {
    EXPECT_EQ(status(request(type, 0)), BlkStatus::kUnsupp) << type;
    EXPECT_EQ(status(request(type, 0, Bytes(512))), BlkStatus::kUnsupp) << type;
    EXPECT_EQ(status(request(type, 0, {}, 512)), BlkStatus::kUnsupp) << type;
  }
  // Of features that were not negotiated.
  EXPECT_EQ(status(request(static_cast<uint32_t>(BlkRequestType::kGetLifetime), 0, {}, 8)), BlkStatus::kUnsupp);
  EXPECT_EQ(status(request(static_cast<uint32_t>(BlkRequestType::kSecureErase), 0, Bytes(16))), BlkStatus::kUnsupp);
  expect_io_works(*session_);
}

// ---- "Discard" and "Write Zeroes"

CASE(VhostBlk, WritesZeroes, "virtio 1.2, 5.2.6.2 Device Requirements: Device Operation: write zeroes") {
  start();
  SKIP_UNLESS(session_->has(vhost::kBlkFeatureWriteZeroes));
  uint32_t unmap = session_->config().write_zeroes_may_unmap != 0 ? vhost::kBlkUnmapFlag : 0;
  for (uint32_t flags : {0U, unmap}) {
    Bytes data = pattern(8 * 512, 21);
    ASSERT_EQ(blk().write(40, data), BlkStatus::kOk);
    EXPECT_EQ(write_zeroes({{.sector = 41, .num_sectors = 6, .flags = flags}}), BlkStatus::kOk);
    Bytes back(data.size());
    ASSERT_EQ(blk().read(40, back), BlkStatus::kOk);
    std::fill(data.begin() + 512, data.end() - 512, uint8_t{0});
    EXPECT_TRUE(back == data) << "flags " << flags;
  }
}

CASE(VhostBlk, WritesZeroesToSeveralSegments, "virtio 1.2, 5.2.4 Device configuration layout: max_write_zeroes_seg") {
  start();
  SKIP_UNLESS(session_->has(vhost::kBlkFeatureWriteZeroes));
  if (session_->config().max_write_zeroes_seg < 2) GTEST_SKIP() << "one segment at a time";
  Bytes data = pattern(8 * 512, 22);
  ASSERT_EQ(blk().write(40, data), BlkStatus::kOk);
  EXPECT_EQ(write_zeroes({{.sector = 40, .num_sectors = 1}, {.sector = 43, .num_sectors = 2}}), BlkStatus::kOk);
  Bytes back(data.size());
  ASSERT_EQ(blk().read(40, back), BlkStatus::kOk);
  std::fill(data.begin(), data.begin() + 512, uint8_t{0});
  std::fill(data.begin() + 3 * 512, data.begin() + 5 * 512, uint8_t{0});
  EXPECT_TRUE(back == data);
}

CASE(VhostBlk, DiscardsAndLeavesTheRestAlone, "virtio 1.2, 5.2.6 Device Operation: discard") {
  start();
  SKIP_UNLESS(session_->has(vhost::kBlkFeatureDiscard));
  Bytes data = pattern(24 * 512, 23);
  ASSERT_EQ(blk().write(0, data), BlkStatus::kOk);
  EXPECT_EQ(discard({{.sector = 8, .num_sectors = 8}}), BlkStatus::kOk);
  Bytes back(data.size());
  ASSERT_EQ(blk().read(0, back), BlkStatus::kOk);
  EXPECT_TRUE(std::equal(back.begin(), back.begin() + 8 * 512, data.begin()));
  EXPECT_TRUE(std::equal(back.begin() + 16 * 512, back.end(), data.begin() + 16 * 512));
}

CASE(VhostBlk, DiscardsSeveralSegments, "virtio 1.2, 5.2.4 Device configuration layout: max_discard_seg") {
  start();
  SKIP_UNLESS(session_->has(vhost::kBlkFeatureDiscard));
  uint32_t count = std::min(session_->config().max_discard_seg, 32U);
  std::vector<BlkDiscardSegment> segments;
  for (uint32_t i = 0; i < count; i++) segments.push_back({.sector = uint64_t{i} * 16, .num_sectors = 8});
  EXPECT_EQ(discard(segments), BlkStatus::kOk);
  // The segments themselves may lie in any number of descriptors.
  Exchange split = segments_request(BlkRequestType::kDiscard, segments);
  split.readable_split = {16, 7, 2};
  EXPECT_EQ(status(split), BlkStatus::kOk);
}

class VhostBlkRanges : public VhostBlk, public ::testing::WithParamInterface<BlkRequestType> {
 public:
  void start_with_feature() {
    start();
    SKIP_UNLESS(session_->has(GetParam() == BlkRequestType::kDiscard ? vhost::kBlkFeatureDiscard
                                                                     : vhost::kBlkFeatureWriteZeroes));
  }
  BlkStatus run(std::vector<BlkDiscardSegment> segments) { return status(segments_request(GetParam(), segments)); }
  uint32_t max_sectors() const {
    const auto& config = session_->config();
    return GetParam() == BlkRequestType::kDiscard ? config.max_discard_sectors : config.max_write_zeroes_sectors;
  }
  uint32_t max_segments() const {
    const auto& config = session_->config();
    return GetParam() == BlkRequestType::kDiscard ? config.max_discard_seg : config.max_write_zeroes_seg;
  }
};

INSTANTIATE_TEST_SUITE_P(Types, VhostBlkRanges,
                         ::testing::Values(BlkRequestType::kDiscard, BlkRequestType::kWriteZeroes),
                         [](const auto& info) {
                           return std::string(info.param == BlkRequestType::kDiscard ? "Discard" : "WriteZeroes");
                         });

// num_sectors times 512 does not fit 32 bits.
CASE_P(VhostBlkRanges, RefusesWhatLiesBeyondTheCapacity,
       "practice: a driver that breaks virtio 1.2, 5.2.6.1: sectors beyond the capacity") {
  start_with_feature();
  if (IsSkipped()) return;
  Bytes data = pattern(4096, 24);
  ASSERT_EQ(blk().write(0, data), BlkStatus::kOk);
  ASSERT_EQ(blk().write(capacity() - 8, data), BlkStatus::kOk);
  EXPECT_EQ(run({{.sector = 0, .num_sectors = 0xffff'ffff}}), BlkStatus::kIoErr);
  EXPECT_EQ(run({{.sector = 0, .num_sectors = 0x0080'0008}}), BlkStatus::kIoErr) << "4 GiB and 8 sectors";
  EXPECT_EQ(run({{.sector = capacity(), .num_sectors = 1}}), BlkStatus::kIoErr);
  EXPECT_EQ(run({{.sector = capacity() - 1, .num_sectors = 2}}), BlkStatus::kIoErr);
  EXPECT_EQ(run({{.sector = ~uint64_t{0}, .num_sectors = 2}}), BlkStatus::kIoErr) << "wraps";
  EXPECT_EQ(run({{.sector = uint64_t{1} << 55, .num_sectors = 1}}), BlkStatus::kIoErr) << "wraps in bytes";
  Bytes back(data.size());
  ASSERT_EQ(blk().read(0, back), BlkStatus::kOk);
  EXPECT_TRUE(back == data) << "a refused request did something at the beginning";
  ASSERT_EQ(blk().read(capacity() - 8, back), BlkStatus::kOk);
  EXPECT_TRUE(back == data) << "a refused request did something at the end";
}

// "the device MUST set the status byte to VIRTIO_BLK_S_UNSUPP ... if any unknown flag is set", and for discard with
// unmap.
CASE_P(VhostBlkRanges, RefusesReservedFlagsAsUnsupported,
       "virtio 1.2, 5.2.6.2 Device Requirements: Device Operation: reserved flags, unmap of discard") {
  start_with_feature();
  if (IsSkipped()) return;
  for (uint32_t flags : {2U, 4U, 0x8000'0000U, 0xffff'fffeU})
    EXPECT_EQ(run({{.sector = 0, .num_sectors = 8, .flags = flags}}), BlkStatus::kUnsupp) << flags;
  if (GetParam() == BlkRequestType::kDiscard)
    EXPECT_EQ(run({{.sector = 0, .num_sectors = 8, .flags = vhost::kBlkUnmapFlag}}), BlkStatus::kUnsupp);
}

CASE_P(VhostBlkRanges, RefusesWrongAmountsOfData,
       "practice: a driver that breaks virtio 1.2, 5.2.6.1: whole segments") {
  start_with_feature();
  if (IsSkipped()) return;
  for (size_t size : {1U, 8U, 15U, 17U, 31U})
    EXPECT_THAT(status(request(static_cast<uint32_t>(GetParam()), 0, Bytes(size))),
                AnyOf(BlkStatus::kIoErr, BlkStatus::kUnsupp))
        << size;
}

CASE_P(VhostBlkRanges, KeepsItsLimits,
       "virtio 1.2, 5.2.6.2 Device Requirements: Device Operation: limits of discard and write zeroes") {
  start_with_feature();
  if (IsSkipped()) return;
  std::vector<BlkDiscardSegment> segments(max_segments() + 1, {.sector = 0, .num_sectors = 1});
  if (segments.size() <= 1025)
    EXPECT_THAT(run(segments), AnyOf(BlkStatus::kIoErr, BlkStatus::kUnsupp)) << "one segment too many";
  segments.pop_back();
  if (segments.size() <= 1024) EXPECT_EQ(run(segments), BlkStatus::kOk) << "as many segments as promised";
  if (max_sectors() < capacity())
    EXPECT_EQ(run({{.sector = 0, .num_sectors = max_sectors() + 1}}), BlkStatus::kIoErr) << "one sector too many";
  uint32_t all = static_cast<uint32_t>(std::min<uint64_t>(max_sectors(), capacity()));
  EXPECT_EQ(run({{.sector = 0, .num_sectors = all}}), BlkStatus::kOk) << "as many sectors as promised";
}

// When one of several segments is impossible, the request fails; segments before it may have been done or not.
CASE_P(VhostBlkRanges, FailsWhenOneOfSeveralSegmentsIsImpossible,
       "virtio 1.2, 5.2.6.2 Device Requirements: Device Operation") {
  start_with_feature();
  if (IsSkipped()) return;
  if (max_segments() < 2) GTEST_SKIP() << "one segment at a time";
  EXPECT_EQ(run({{.sector = 0, .num_sectors = 8}, {.sector = capacity(), .num_sectors = 8}}), BlkStatus::kIoErr);
  EXPECT_EQ(run({{.sector = 0, .num_sectors = 8}, {.sector = 8, .num_sectors = 8, .flags = 8}}), BlkStatus::kUnsupp);
}

// ---- Read-only device

class VhostBlkReadOnly : public VhostBlk {
 public:
  VhostBlkReadOnly() : VhostBlk({.readonly = true}) {}
};

// "If the VIRTIO_BLK_F_RO feature is set by the device, any write requests will fail": discard and write zeroes as
// well.
CASE(VhostBlkReadOnly, FailsWritesDiscardsAndWriteZeroes,
     "virtio 1.2, 5.2.6.2 Device Requirements: Device Operation: VIRTIO_BLK_F_RO") {
  start();
  ASSERT_TRUE(session_->has(vhost::kBlkFeatureRo));
  Bytes before(4096), after(4096);
  ASSERT_EQ(blk().read(0, before), BlkStatus::kOk);
  EXPECT_EQ(status(write_request(0, pattern(4096, 30))), BlkStatus::kIoErr);
  std::vector<BlkDiscardSegment> segment = {{.sector = 0, .num_sectors = 8}};
  // Whether the target offers them on a read-only device is its own affair; a driver can send them anyhow.
  EXPECT_THAT(discard(segment), AnyOf(BlkStatus::kIoErr, BlkStatus::kUnsupp));
  EXPECT_THAT(write_zeroes(segment), AnyOf(BlkStatus::kIoErr, BlkStatus::kUnsupp));
  if (session_->has(vhost::kBlkFeatureDiscard)) EXPECT_EQ(discard(segment), BlkStatus::kIoErr);
  if (session_->has(vhost::kBlkFeatureWriteZeroes)) EXPECT_EQ(write_zeroes(segment), BlkStatus::kIoErr);
  ASSERT_EQ(blk().read(0, after), BlkStatus::kOk);
  EXPECT_TRUE(before == after);
}

// The feature bit is the device's; a driver that did not take it cannot write either.
CASE(VhostBlkReadOnly, FailsWritesOfADriverThatIgnoresTheFeature,
     "virtio 1.2, 5.2.5 Device Initialization: VIRTIO_BLK_F_RO") {
  start({.leave_features = vhost::kBlkFeatureRo});
  EXPECT_EQ(status(write_request(0, pattern(4096, 30))), BlkStatus::kIoErr);
}

}  // namespace
}  // namespace sluice::test
