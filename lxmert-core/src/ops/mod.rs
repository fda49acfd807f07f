//! The numeric kernels: fast on the CPU, each with its gradient, each beside a plain composition
//! of candle's own operations that other devices use and that tests compare against.
