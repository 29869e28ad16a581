// oneCCL's all-reduce on CPUs behind five C functions, so that Python can call it: its own API is
// C++ only. peer_mpi.py loads this; the addresses of the ranks' meeting place travel through MPI.

#include <cstddef>
#include <cstring>
#include <optional>
#include <vector>

#include <oneapi/ccl.hpp>

namespace {

ccl::shared_ptr_class<ccl::kvs> meeting_place;
std::optional<ccl::communicator> communicator;
std::optional<ccl::stream> stream;
void *buffer;
std::size_t element_count;
ccl::datatype element;

} // namespace

// The static library calls Intel's tracing through pointers that another library would define;
// null is the tracer's own "off".
extern "C" {
#define TRACE_POINTER(name) void *__itt_##name##_ptr__3_0 = nullptr;
TRACE_POINTER(domain_create)
TRACE_POINTER(event_create)
TRACE_POINTER(event_end)
TRACE_POINTER(event_start)
TRACE_POINTER(metadata_add)
TRACE_POINTER(string_handle_create)
TRACE_POINTER(task_begin)
TRACE_POINTER(task_end)
TRACE_POINTER(thread_set_name)
}

// Opens the library; rank 0 writes its address, of address_bytes (256), for the others.
extern "C" void oneccl_open(int rank, char *address, std::size_t address_bytes)
{
    ccl::init();
    if (rank == 0) {
        meeting_place = ccl::create_main_kvs();
        std::memcpy(address, meeting_place->get_address().data(), address_bytes);
    }
}

// Joins the others, with the address that rank 0 wrote.
extern "C" void oneccl_join(int rank, int size, const char *address)
{
    if (rank != 0) {
        ccl::kvs::address_type place;
        std::memcpy(place.data(), address, place.size());
        meeting_place = ccl::create_kvs(place);
    }
    communicator.emplace(ccl::create_communicator(size, rank, meeting_place));
    stream.emplace(ccl::create_stream());
}

// Says what oneccl_all_reduce works on, so that a call from Python needs no arguments.
extern "C" void oneccl_bind(void *data, std::size_t count, bool is_bfloat16)
{
    buffer = data;
    element_count = count;
    element = is_bfloat16 ? ccl::datatype::bfloat16 : ccl::datatype::float32;
}

// Sum, in place.
extern "C" void oneccl_all_reduce(void)
{
    ccl::allreduce(buffer, buffer, element_count, element, ccl::reduction::sum, *communicator,
                   *stream)
        .wait();
}

// Leaves; to be called before MPI ends.
extern "C" void oneccl_close(void)
{
    stream.reset();
    communicator.reset();
    meeting_place.reset();
}
