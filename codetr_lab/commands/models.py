"""`codetr models`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Models:
    """List the presets and the trained models that come with the package."""

    def run(self) -> int:
        from codetr_lab.engine.checkpoint import read_config, shipped_models
        from codetr_lab.models.presets import create_model, list_models

        shipped = shipped_models()
        print(f"{'preset':<28}{'parameters':>12}{'in use':>12}  auxiliary heads")
        for name in list_models():
            model = create_model(name)
            sizes = {key: parameter.numel() for key, parameter in model.named_parameters()}
            training_only = ("heads.", "customizers.", "pyramid.") if model.decoder else ()
            used = sum(size for key, size in sizes.items() if not key.startswith(training_only))
            heads = ", ".join(model.config.aux_heads) or "none"
            print(f"{name:<28}{sum(sizes.values()) / 1e6:>10.2f} M{used / 1e6:>10.2f} M  {heads}")
        print("\ntrained models in this package:", "" if shipped else "none")
        for name, folder in shipped.items():
            config = read_config(folder)
            print(f"  {name:<26}{', '.join(config.classes)}")
        return 0
