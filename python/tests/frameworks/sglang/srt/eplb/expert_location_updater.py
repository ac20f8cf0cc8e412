class ExpertLocationUpdater:
    def update(
        self,
        routed_experts_weights_of_layer,
        new_expert_location_metadata,
        update_layer_ids,
        nnodes,
        rank,
        use_flat_topology=False,
    ):
        return {}
