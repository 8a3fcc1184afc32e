// The variant for x86 with AVX-512 (F and BW).
#ifdef __x86_64__
#define TARGET __attribute__((target("avx512f,avx512bw,avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline, target("avx512f,avx512bw,avx2,fma,f16c")))
#include "avx512.h"

static int supported(void) {
	__builtin_cpu_init();
	return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
	       __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

#define VARIANT host_avx512
#define VARIANT_NAME "avx512"
#include "variant.h"
#endif
