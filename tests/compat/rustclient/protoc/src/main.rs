//! The few options of `protoc` that prost-build gives: compiles files into a descriptor set.

use std::error::Error;
use std::path::PathBuf;

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    let mut includes = Vec::new();
    let mut files = Vec::new();
    let mut output = None;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--version" => {
                println!("libprotoc 0.0");
                return Ok(());
            }
            "-I" => includes.push(PathBuf::from(args.next().ok_or("-I needs a folder")?)),
            "-o" => output = Some(PathBuf::from(args.next().ok_or("-o needs a file")?)),
            "--include_imports"
            | "--include_source_info"
            | "--experimental_allow_proto3_optional" => {}
            option if option.starts_with('-') => {
                return Err(format!("unknown option {option}").into());
            }
            file => files.push(PathBuf::from(file)),
        }
    }
    let output = output.ok_or("-o is missing")?;
    let set = protox::Compiler::new(includes)?
        .include_imports(true)
        .include_source_info(true)
        .open_files(files)?
        .file_descriptor_set();
    std::fs::write(output, set.encode_to_vec())?;
    Ok(())
}
