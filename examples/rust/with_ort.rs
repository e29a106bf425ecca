// Runs a model of images of bytes with the crate ort: with_ort MODEL.onnx PICTURE.ppm LIBRARY

use ort::session::Session;
use ort::value::Tensor;

fn main() -> ort::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let mut session = Session::builder()?
        .with_intra_threads(1)?
        .with_operator_library(&arguments[3])?
        .commit_from_file(&arguments[1])?;
    // The pixels of a picture of 32 x 32 with 3 channels are the end of its file.
    let file = std::fs::read(&arguments[2]).expect("the picture can be read");
    let pixels = file[file.len() - 32 * 32 * 3..].to_vec();
    let outputs = session.run(ort::inputs![Tensor::from_array(([1usize, 32, 32, 3], pixels))?])?;
    let (_, scores) = outputs[0].try_extract_tensor::<f32>()?;
    println!("{scores:?}");
    Ok(())
}
