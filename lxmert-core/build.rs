//! Under the feature `cuda`: the kernels of `src/ops/cuda/kernels` to PTX, by nvcc, for compute capability `CUDA_COMPUTE_CAP`
//! (80 by default); the driver makes machine code of it for this or any later card. nvcc is `LXMERT_NVCC`, `NVCC`, that of
//! `CUDA_HOME` or `CUDA_PATH`, or the one on PATH.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

const KERNELS: &str = "src/ops/cuda/kernels";

fn nvcc() -> PathBuf {
    let file = |name: &str| env::var_os(name).map(PathBuf::from);
    let toolkit = |name: &str| file(name).map(|root| root.join("bin/nvcc")).filter(|nvcc| nvcc.is_file());
    let named = file("LXMERT_NVCC").or_else(|| file("NVCC"));
    named.or_else(|| toolkit("CUDA_HOME")).or_else(|| toolkit("CUDA_PATH")).unwrap_or_else(|| "nvcc".into())
}

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={KERNELS}");
    for name in ["LXMERT_NVCC", "NVCC", "CUDA_HOME", "CUDA_PATH", "CUDA_COMPUTE_CAP"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    let ptx = Path::new(&env::var("OUT_DIR")?).join("kernels.ptx");
    let capability = env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| "80".into());
    let nvcc = nvcc();
    let mut command = Command::new(&nvcc);
    command.args(["--ptx", "-std=c++17", "-O3", "-lineinfo"]).arg(format!("-arch=compute_{capability}"));
    command.arg("-o").arg(&ptx).arg(Path::new(KERNELS).join("kernels.cu"));
    let output = command.output().map_err(|e| format!("the feature `cuda` needs nvcc; {}: {e}", nvcc.display()))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        return Err(format!("{}:\n{}", nvcc.display(), String::from_utf8_lossy(&said)).into());
    }
    Ok(())
}
