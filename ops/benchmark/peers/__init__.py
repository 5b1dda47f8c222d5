"""What our kernels are compared with: PyTorch, other packages, and a stand-in for the public CUDA kernels."""
