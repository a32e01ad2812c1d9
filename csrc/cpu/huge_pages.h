// Asks for huge pages under a large new tensor. Allocators give blocks this large back to the
// system and take fresh ones, wholly or in part, on every call, and touching those for the first
// time page by page (4 KiB) takes longer than the convolution: 17,000 page faults, 20 ms, for 69
// MB.
#pragma once

#include <cstdint>

namespace dlv3p {

void advise_huge_pages(void* data, int64_t bytes);

}  // namespace dlv3p
