class MixtureOfExperts:
    num_logical_experts: int
    num_local_physical_experts: int
