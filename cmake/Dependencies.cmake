# Debian 12 packages only; scripts/setup installs them.
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(CLI11 REQUIRED)
find_package(GTest REQUIRED)
find_package(benchmark REQUIRED)
pkg_check_modules(JSONCPP REQUIRED IMPORTED_TARGET jsoncpp)
pkg_check_modules(UUID REQUIRED IMPORTED_TARGET uuid)
find_library(AIO_LIBRARY aio REQUIRED)
find_library(URING_LIBRARY uring REQUIRED)

# Of DPDK only the ring is used, without its environment layer: librte_ring and what it refers to.
# The C11 memory model makes the ring's ordering visible to ThreadSanitizer and costs nothing on x86.
find_path(DPDK_INCLUDE_DIR rte_ring.h PATH_SUFFIXES dpdk REQUIRED)
find_path(DPDK_CONFIG_INCLUDE_DIR rte_config.h PATHS /usr/include/${CMAKE_LIBRARY_ARCHITECTURE} PATH_SUFFIXES dpdk REQUIRED)
find_library(RTE_RING_LIBRARY rte_ring REQUIRED)
find_library(RTE_EAL_LIBRARY rte_eal REQUIRED)
add_library(sluice_rte_ring INTERFACE)
target_include_directories(sluice_rte_ring SYSTEM INTERFACE ${DPDK_INCLUDE_DIR} ${DPDK_CONFIG_INCLUDE_DIR})
target_compile_options(sluice_rte_ring INTERFACE -include rte_config.h)
target_compile_definitions(sluice_rte_ring INTERFACE RTE_USE_C11_MEM_MODEL)
target_link_libraries(sluice_rte_ring INTERFACE ${RTE_RING_LIBRARY} ${RTE_EAL_LIBRARY})
