// kLanes floats at a time. Included once for each kind of processor (kernels.cpp).

typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef int32_t Whole __attribute__((vector_size(4 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));

ALWAYS_INLINE Lanes load(const float *from) {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

ALWAYS_INLINE void store(float *to, Lanes lanes) { std::memcpy(to, &lanes, sizeof lanes); }

ALWAYS_INLINE Lanes load(const BFloat16 *from) {
  Halves upper;
  std::memcpy(&upper, from, sizeof upper);
  const Bits bits = __builtin_convertvector(upper, Bits) << 16;
  Lanes lanes;
  std::memcpy(&lanes, &bits, sizeof lanes);
  return lanes;
}

// A float whose upper half is the nearest bfloat16, of two the even one.
ALWAYS_INLINE Bits rounded(Lanes lanes) {
  Bits bits;
  std::memcpy(&bits, &lanes, sizeof bits);
  return lanes == lanes ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000;
}

ALWAYS_INLINE void store(BFloat16 *to, Lanes lanes) {
  const Halves upper = __builtin_convertvector(rounded(lanes) >> 16, Halves);
  std::memcpy(to, &upper, sizeof upper);
}

// 2 * kLanes values in the order that is fastest, and back.
ALWAYS_INLINE void load_two(const float *from, Lanes &a, Lanes &b) {
  a = load(from);
  b = load(from + kLanes);
}

ALWAYS_INLINE void load_two(const BFloat16 *from, Lanes &a, Lanes &b) {
  Bits both;
  std::memcpy(&both, from, sizeof both);
  const Bits even = both << 16, odd = both & 0xffff0000;
  std::memcpy(&a, &even, sizeof a);
  std::memcpy(&b, &odd, sizeof b);
}

ALWAYS_INLINE void store_two(float *to, Lanes a, Lanes b) {
  store(to, a);
  store(to + kLanes, b);
}

ALWAYS_INLINE void store_two(BFloat16 *to, Lanes a, Lanes b) {
  const Bits both = rounded(a) >> 16 | (rounded(b) & 0xffff0000);
  std::memcpy(to, &both, sizeof both);
}

ALWAYS_INLINE float sum_of(Lanes x) {
  float sum = 0;
  for (int64_t i = 0; i < kLanes; ++i) sum += x[i];
  return sum;
}

ALWAYS_INLINE float greatest_of(Lanes x) {
  float most = x[0];
  for (int64_t i = 1; i < kLanes; ++i) most = x[i] > most ? x[i] : most;
  return most;
}

// e^x for x <= 0 to within 2 units in the last place: 2^n times a polynomial of the rest (the reduction of Cody and
// Waite, the minimax coefficients of Cephes). 0 below -87.
ALWAYS_INLINE Lanes exp_of(Lanes x) {
  const Lanes bounded = x < -87.0f ? Lanes{} - 87.0f : x;
  const Lanes n = (bounded * 1.44269504f + 12582912.0f) - 12582912.0f;  // to the nearest whole number
  const Lanes r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  Lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * r) * r + r + 1.0f;
  const Whole bits = (__builtin_convertvector(n, Whole) + 127) << 23;
  Lanes power;
  std::memcpy(&power, &bits, sizeof power);
  return x < -87.0f ? Lanes{} : p * power;
}
