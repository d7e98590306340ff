"""Drop-ins: other libraries' interfaces on our processes, plans and kernels. Each module loads its peer when asked."""
