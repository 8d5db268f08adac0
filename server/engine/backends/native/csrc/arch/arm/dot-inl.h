// `struct Isa` for NEON with dot products of int8.

#include "arch/arm/sdot-inl.h"

struct Isa : NeonTiles<Sdot> {};
