"""Files to parameter trees and back: the stored format, and the tables that convert published ones.

    published file --read_safetensors--> {name: array} --convert(table)--> params --save_model--+
                                                                                                |
    module.apply({"params": params}, ...) <------------load_model------------ model folder <----+

`rules` knows no model, `stable_diffusion` and `clip` hold the names of published files and nothing
else, `files` knows neither.
"""
