"""Plans in nnU-Net's format, of a data set that does not exist."""

import json

DATASET = {
    "channel_names": {"0": "gray", "1": "edges"},
    "labels": {"background": 0, "organ": 1, "lesion": 2},
    "numTraining": 4,
    "file_ending": ".png",
}
CHANNELS, CLASSES = 2, 3


def u_net(stages, dims):
    """`arch_kwargs` in nnU-Net's format."""
    return {
        "n_stages": stages,
        "features_per_stage": [8 * 2**stage for stage in range(stages)],
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": [[3] * dims] * stages,
        "strides": [[1] * dims, *[[2] * dims] * (stages - 1)],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }


def configuration(patch_size, stages=4):
    return {
        "data_identifier": "nnUNetPlans_2d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch_size,
        "spacing": [1.0] * len(patch_size),
        "normalization_schemes": ["ZScoreNormalization"] * CHANNELS,
        "use_mask_for_norm": [False] * CHANNELS,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3},
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1},
        "batch_dice": True,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": u_net(stages, len(patch_size)),
            "_kw_requires_import": ["conv_op"],
        },
    }


def write_plans(preprocessed):
    """Write plans to nnU-Net's folder for them; returns the file."""
    plans = {
        "dataset_name": "Dataset901_Shapes",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [999.0, 1.0, 1.0],
        "image_reader_writer": "NaturalImage2DIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}, "1": {}},
        "configurations": {
            "2d": configuration([32, 48]),
            "3d_fullres": configuration([16, 32, 16], stages=3),
        },
    }
    folder = preprocessed / "Dataset901_Shapes"
    folder.mkdir(parents=True)
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(DATASET))
    return folder / "nnUNetPlans.json"
