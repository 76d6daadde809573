/* SPDX-License-Identifier: MIT
 * test_checksum.c: XXH64 against published values; more in tests/test_checksums.py. */
#include "minunit.h"

static void test_published_values(void) {
    CHECK(lens_checksum("", 0) == 0xef46db3751d8e999u);
    CHECK(lens_checksum(NULL, 0) == 0xef46db3751d8e999u);
    CHECK(lens_checksum("a", 1) == 0xd24ec4f1a98c6e5bu);
    CHECK(lens_checksum("abc", 3) == 0x44bc2cf5ad770999u);
}

/* Only the bytes count: not where they lie, nor what comes after them. */
static void test_any_place(void) {
    unsigned char here[120], there[128];
    for (size_t n = 0; n <= sizeof here; n++) {
        memset(there, 0xab, sizeof there);
        for (size_t i = 0; i < n; i++)
            here[i] = there[i + 3] = (unsigned char)(37 * i + n);
        CHECK(lens_checksum(here, n) == lens_checksum(there + 3, n));
    }
}

int main(void) {
    RUN(test_published_values);
    RUN(test_any_place);
    return REPORT();
}
