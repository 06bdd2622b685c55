// kLanes floats at a time. Included once for each kind of processor (kernels.cpp).

typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef int32_t Whole __attribute__((vector_size(4 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

ALWAYS_INLINE Lanes load(const float *from) {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

ALWAYS_INLINE void store(float *to, Lanes lanes) { std::memcpy(to, &lanes, sizeof lanes); }

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
